"""A save that dies, or fails, at any of its file operations leaves a valid checkpoint and no rubbish."""

import json
import multiprocessing
import re
import shutil
import signal

import pytest
import torch
from file_operations import FileOperations, die, no_space

from tinybert_dist.config import StageFailed, run_stage
from tinybert_dist.models import load_encoder, load_tokenizer, save_model
from tinybert_dist.stages import prepare_corpus
from tinybert_dist.training.checkpoint import Checkpoints
from tinybert_dist.training.trained import MOMENTS


def tensors(step):
    torch.manual_seed(step)
    parameters = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    return parameters, {f"{m}.{n}": torch.rand(p.shape) for n, p in parameters.items() for m in MOMENTS}


def save(checkpoints, step):
    return checkpoints.save(*tensors(step), {"step": step, "needs": []})


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """Steps 1 and 2 are whole, 3 is damaged, 9 was never finished: a save of 3 has everything to do."""
    folder = tmp_path_factory.mktemp("before") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        save(checkpoints, step)
    shutil.copytree(checkpoints.path(2), checkpoints.path(3))
    (folder / ".step-00000009.tmp").mkdir()
    (folder / ".step-00000009.tmp" / "model.safetensors").write_bytes(b"half")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def check_whole(checkpoints):
    """There is a newest checkpoint and it is wholly the one before the save or the saved one; its step."""
    newest = checkpoints.newest(lambda message: None)
    assert newest.step in {2, 3}
    for ours, theirs in zip((newest.parameters(), newest.moments()), tensors(newest.step), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return newest.step


def save_with_death(folder, die_at, log):
    """Runs in a process of its own; writes the names of all operations if it survives."""
    with FileOperations(die_at, die) as operations:
        save(Checkpoints(folder, keep=2), 3)
    log.write_text(json.dumps(operations.done))


@pytest.fixture(scope="module")
def processes():
    """Forks of a process that has imported everything: a death costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "tinybert_dist.training.trained", "tinybert_dist.training.checkpoint"]
    )
    return context


@pytest.fixture(scope="module")
def operations(before, processes, tmp_path_factory):
    """The names of a whole save's file operations, in their order."""
    folder, log = tmp_path_factory.mktemp("whole") / "checkpoints", tmp_path_factory.mktemp("log") / "log"
    shutil.copytree(before, folder)
    process = processes.Process(target=save_with_death, args=(folder, None, log))
    process.start()
    process.join()
    assert process.exitcode == 0 and names(folder) == ["step-00000002", "step-00000003"]
    return json.loads(log.read_text())


def test_death_at_every_file_operation(before, operations, processes, tmp_path):
    assert len(operations) > 30
    newest_steps = []
    for die_at, name in enumerate(operations):
        folder, log = tmp_path / f"{die_at}" / "checkpoints", tmp_path / "log"
        shutil.copytree(before, folder)
        process = processes.Process(target=save_with_death, args=(folder, die_at, log))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not log.exists(), f"no fault at {die_at}: {name}"
        checkpoints = Checkpoints(folder, keep=2)
        newest_steps.append(check_whole(checkpoints))
        save(checkpoints, 4)
        assert names(folder) == [f"step-{newest_steps[-1]:08d}", "step-00000004"], name
        assert checkpoints.newest().step == 4
    # until the rename it is the old one, from then on the new one
    renamed = operations.index("rename .step-00000003.tmp") + 1
    assert newest_steps == [2] * renamed + [3] * (len(operations) - renamed)


def test_everything_is_on_the_disk_before_the_name_is(operations):
    renamed = operations.index("rename .step-00000003.tmp")
    written = ["model.safetensors", "optimizer.safetensors", ".step-00000003.tmp"]
    assert {f"fsync {name}" for name in written} <= set(operations[:renamed])
    for name in ("state.json", "manifest.json"):  # through a temporary name
        synced, replaced = (
            next(i for i, done in enumerate(operations) if done.startswith(f"{what} .{name}."))
            for what in ("fsync", "replace")
        )
        assert synced < replaced < renamed
    last_write = max(i for i, done in enumerate(operations[:renamed]) if done.startswith("replace"))
    assert "fsync .step-00000003.tmp" in operations[last_write:renamed]
    # and nothing old goes before the new name is on the disk, too
    assert operations[renamed + 1] == "fsync checkpoints"
    assert operations.index("rename step-00000001") > renamed + 1


def test_an_error_at_every_file_operation(before, operations, tmp_path):
    errors = []
    for fault_at, name in enumerate(operations):
        folder = tmp_path / f"{fault_at}" / "checkpoints"
        shutil.copytree(before, folder)
        checkpoints = Checkpoints(folder, keep=2)
        with FileOperations(fault_at, no_space) as faulty:
            try:
                save(checkpoints, 3)
            except StageFailed as error:
                errors.append(str(error))
        assert faulty.fault_at is None, f"no fault at {fault_at}: {name}"
        assert ".step-00000003.tmp" not in names(folder), name
        newest = check_whole(checkpoints)
        save(checkpoints, 4)
        assert names(folder) == [f"step-{newest:08d}", "step-00000004"], name
    # a folder that is there already need not be made: two of the three mkdir
    assert len(errors) == len(operations) - 2
    for error in errors:
        assert re.search(r"No space left on device.* bytes, .* are free.*the same command resumes", error)


def test_a_full_disk(small_disk):
    folder = small_disk("240k") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=9)
    large = {"weight": torch.ones(10_000)}
    moments = {f"{m}.weight": torch.ones(10_000) for m in MOMENTS}
    checkpoints.save(large, moments, {"step": 1, "needs": []})
    with pytest.raises(
        StageFailed, match=r"step-00000002.*No space left.*needs 120,000 bytes, [\d,]+ are free"
    ):
        checkpoints.save(large, moments, {"step": 2, "needs": []})
    assert names(folder) == ["step-00000001"] and checkpoints.newest().step == 1
    small_disk("1m")
    checkpoints.save(large, moments, {"step": 2, "needs": []})
    assert names(folder) == ["step-00000001", "step-00000002"] and checkpoints.newest().step == 2


def test_any_write_to_a_full_disk_is_one_sentence(small_disk, workspace, tmp_path, capsys):
    folder = small_disk("64k")
    options = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "output_dir": folder / "tokens",
    }
    (folder / "other").write_bytes(b"x" * 60_000)
    argv = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    with pytest.raises(SystemExit) as stop:
        prepare_corpus.main(argv)
    assert stop.value.code == 1
    assert "failed: [Errno 28] No space left on device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        run_stage(
            lambda config: save_model(
                load_encoder(workspace / "teacher"), load_tokenizer(workspace / "teacher"), folder, card=""
            ),
            prepare_corpus.PrepareCorpusConfig,
            argv,
        )
    assert stop.value.code == 1
    assert "No space left on device (os error 28). Make room" in capsys.readouterr().err
    small_disk("1m")
    assert prepare_corpus.main(argv)["rows"] > 0
