import json
import shutil

import pytest
import torch

from tinybert_dist.config import UserError
from tinybert_dist.training.checkpoint import Checkpoints
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


DAMAGE = {
    "flipped": lambda f: flip(f / "model.safetensors"),
    "truncated": lambda f: (f / "optimizer.safetensors").write_bytes(b"short"),
    "missing file": lambda f: (f / "state.json").unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "empty manifest": lambda f: (f / "manifest.json").write_text(""),
    "manifest of other shape": lambda f: (f / "manifest.json").write_text(json.dumps({"files": []})),
    "renamed": lambda f: f.rename(f.with_name("step-00000009")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, kind):
    checkpoints, said = Checkpoints(tmp_path, 3), []
    for step in (1, 2):
        save(checkpoints, step)
    DAMAGE[kind](checkpoints.path(2))
    assert checkpoints.newest(said.append).step == 1
    assert len(said) == 1 and "damaged" in said[0]


def test_all_damaged_stops_instead_of_starting_afresh(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    for step in (1, 2):
        flip(save(checkpoints, step) / "model.safetensors")
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
    """A run that fell back to step 2 saves at 3: the damaged step 4 neither counts nor stands in the way."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (2, 4):
        save(checkpoints, step)
    DAMAGE[kind](checkpoints.path(4))
    save(checkpoints, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoints.newest().step == 3


def test_an_interrupted_save_is_not_a_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 1)
    unfinished = tmp_path / ".step-00000002.tmp"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest().step == 1
    save(checkpoints, 2)
    assert checkpoints.newest().step == 2 and not unfinished.exists()
