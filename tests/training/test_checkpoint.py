import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinybert_dist.config import UserError
from tinybert_dist.files import sha256_of
from tinybert_dist.training import checkpoint
from tinybert_dist.training.checkpoint import FILES, Checkpoints
from tinybert_dist.training.trained import MOMENTS


def tensors(step):
    torch.manual_seed(step)
    parameters = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    return parameters, {f"{m}.{n}": torch.rand(p.shape) for n, p in parameters.items() for m in MOMENTS}


def save(checkpoints, step, needs=()):
    return checkpoints.save(*tensors(step), {"step": step, "needs": list(needs)})


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3)
    newest = checkpoints.newest()
    for ours, theirs in zip((newest.parameters(), newest.moments()), tensors(3), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_no_pickle_anywhere(tmp_path):
    folder = save(Checkpoints(tmp_path, 2), 1)
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def list_anew(folder):
    """A manifest that agrees with whatever the files hold now."""
    entries = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in FILES}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def without(folder, file, name):
    tensors = load_file(folder / file)
    del tensors[name]
    save_file(tensors, folder / file)
    list_anew(folder)


def as_link(folder, file=""):
    path = folder / file
    path.symlink_to(path.rename(folder.parents[1] / f"elsewhere-{path.name}"))


def with_another_step(folder):
    edit(folder / "state.json", step=7)
    list_anew(folder)


DAMAGE = {
    "flipped weight": (lambda f: flip(f / "model.safetensors"), "model.safetensors does not match"),
    "flipped moment": (lambda f: flip(f / "optimizer.safetensors"), "optimizer.safetensors does not match"),
    "flipped state": (lambda f: flip(f / "state.json"), "state.json does not match"),
    "flipped manifest": (lambda f: flip(f / "manifest.json"), "manifest.json|does not match|Error"),
    "truncated": (lambda f: os.truncate(f / "optimizer.safetensors", 99), "has 99 bytes instead of"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "model.safetensors has 0 bytes instead of"),
    "no state": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a folder instead": (lambda f: instead_of(f / "state.json"), "state.json is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "JSONDecodeError"),
    "manifest of other shape": (lambda f: edit(f / "manifest.json", files=[]), "TypeError"),
    "manifest without a file": (
        lambda f: edit(f / "manifest.json", files={}),
        "KeyError: 'model.safetensors'",
    ),
    "renamed": (lambda f: f.rename(f.with_name("step-00000009")), "it holds step 2"),
    "wrong step": (with_another_step, "it holds step 7"),
    "another checkpoint's weights": (
        lambda f: swap(f, "model.safetensors"),
        "model.safetensors does not match",
    ),
    "another checkpoint's moments": (lambda f: swap(f, "optimizer.safetensors"), "does not match"),
    "another checkpoint": (lambda f: swap(f, *FILES, "manifest.json"), "it holds step 1"),
    "a weight less, listed": (lambda f: without(f, FILES[0], "bias"), "model.safetensors lacks bias"),
    "a moment less, listed": (lambda f: without(f, FILES[1], "exp_avg.bias"), "lacks exp_avg.bias"),
    "no tensors, listed": (lambda f: [(f / FILES[0]).write_text("text"), list_anew(f)], "SafetensorError"),
    "file is a link": (lambda f: as_link(f, "model.safetensors"), "model.safetensors is a link"),
    "manifest is a link": (lambda f: as_link(f, "manifest.json"), "manifest.json is a link"),
    "folder is a link": (as_link, "step-00000002 is a link"),
    "a file of that name": (lambda f: [shutil.rmtree(f), f.write_text("")], "NotADirectoryError"),
}


def instead_of(path):
    path.unlink()
    path.mkdir()


def swap(folder, *files):
    for name in files:
        shutil.copy(folder.with_name("step-00000001") / name, folder / name)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, kind):
    checkpoints, said = Checkpoints(tmp_path / "checkpoints", 3), []
    for step in (1, 2):
        save(checkpoints, step)
    damage, message = DAMAGE[kind]
    damage(checkpoints.path(2))
    assert checkpoints.newest(said.append).step == 1
    assert len(said) == 1 and "damaged" in said[0]
    assert re.search(message, said[0]), said


def test_all_damaged_stops_instead_of_starting_afresh(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    for folder in [save(checkpoints, step) for step in (1, 2)]:
        flip(folder / "model.safetensors")
    with pytest.raises(UserError, match="2 checkpoints and none is whole"):
        checkpoints.newest(lambda message: None)


def test_none_at_all_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path / "none", 2).newest() is None


def test_pruning_keeps_the_newest_and_what_they_need(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    for step in (2, 3, 4):
        save(checkpoints, step, needs=[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003", "step-00000004"]
    shutil.rmtree(checkpoints.path(1))
    with pytest.raises(UserError, match="none is whole"):
        checkpoints.newest(lambda message: None)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_does_not_stop_the_saves_after_it(tmp_path, kind):
    """Whether at the damaged one's step or later: it neither counts nor stands in the way."""
    for following in (2, 3):
        folder = tmp_path / f"{following}" / "checkpoints"
        checkpoints = Checkpoints(folder, keep=2)
        for step in (1, 2):
            save(checkpoints, step)
        DAMAGE[kind][0](checkpoints.path(2))
        checkpoints = Checkpoints(folder, keep=2)  # the run that resumes is another process
        save(checkpoints, following)
        assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", f"step-{following:08d}"]
        assert checkpoints.newest().step == following


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    save(checkpoints, 1)
    as_link(checkpoints.path(1))
    save(checkpoints, 2)
    assert not os.path.lexists(checkpoints.path(1))
    assert {*FILES, "manifest.json"} == {p.name for p in (tmp_path / "elsewhere-step-00000001").iterdir()}


def test_a_checkpoint_of_another_run_is_not_resumed_from(tmp_path):
    said, ours = [], {"stage": "general_distill", "seed": 1}
    for step, identity in ((1, ours), (2, ours | {"seed": 2})):
        state = {"step": step, "needs": [], "identity": identity}
        Checkpoints(tmp_path, keep=2).save(*tensors(step), state)
    assert Checkpoints(tmp_path, 2, identity=ours).newest(said.append).step == 1
    assert said == [
        "checkpoint step-00000002 is damaged (another run made it); falling back to the one before"
    ]


def test_copies_that_somebody_keeps_are_neither_read_nor_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    copies = ["step-00000001.bak", "step-notes.txt", "best"]
    for name in copies:
        shutil.copytree(checkpoints.path(1), tmp_path / name)
    save(checkpoints, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*copies, "step-00000002"])
    shutil.rmtree(checkpoints.path(2))
    assert checkpoints.newest() is None


def test_a_save_does_not_read_the_old_ones_again(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    checkpoints, counts = Checkpoints(tmp_path, keep=9), []
    for step in range(1, 9):
        read.clear()
        save(checkpoints, step)
        counts.append(len(read))
    assert counts == [2 * len(FILES)] * 8  # for the manifest, and to verify it
    read.clear()
    save(Checkpoints(tmp_path, keep=9), 9)
    assert len(read) == (2 + 8) * len(FILES)


def test_an_interrupted_save_is_not_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    unfinished = tmp_path / ".step-00000002.tmp"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest().step == 1
    save(checkpoints, 2)
    assert checkpoints.newest().step == 2 and not unfinished.exists()
