"""Augmentation that dies, or meets a full disk, at any of its file operations ends with the same output."""

import shutil

import pytest
from file_operations import FileOperations
from tiny_masked_lm import ENGLISH, save_masked_lm

from tinybert_dist.config import run_stage
from tinybert_dist.data.augment_blocks import Blocks, ParquetRows, TsvRows
from tinybert_dist.stages.augment import AugmentConfig, run

NAMES = ["text", "label"]
ROWS = [[[f"text {b}", "yes"], [f"new text {b}", "yes"]] for b in range(3)]
FORMATS = {"out.tsv": TsvRows(NAMES), "out": ParquetRows(NAMES)}


class Death(BaseException):
    """Nothing catches it (but `finally` runs, unlike in the real deaths of test_augment_ranks)."""


def die():
    raise Death


def finish(folder, name):
    """What a process does: the blocks that are missing, then the join."""
    blocks = Blocks(folder / name, "a" * 16, len(ROWS), FORMATS[name])
    if blocks.finished() is None:
        for b in blocks.missing(range(len(ROWS)), verify=True):
            blocks.write(b, ROWS[b], {"rows": len(ROWS[b])})
        blocks.join(lambda facts: {"rows": sum(each["rows"] for each in facts)})
    blocks.clear()
    return blocks


def content(output):
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("replaces", [False, True])
def test_a_fault_at_any_file_operation(tmp_path, name, replaces):
    expected = content(finish(tmp_path / "whole", name).output)

    def begin(folder):
        if replaces:  # the output of other options is there
            old = Blocks(folder / name, "b" * 16, 1, FORMATS[name])
            old.write(0, [["old", "no"]], {"rows": 1})
            old.join(lambda facts: {})
        return folder

    with FileOperations(None, die) as operations:
        finish(begin(tmp_path / "counted"), name)
    counted = len(operations.done)
    assert counted > 25
    for at in range(counted):
        folder = begin(tmp_path / str(at))
        with FileOperations(at, die) as operations:
            try:
                finish(folder, name)
                faulted = False
            except Death:
                faulted = True
        assert faulted == (operations.fault_at is None)
        blocks = finish(folder, name)
        assert content(blocks.output) == expected and blocks.finished() == {"rows": 6}
        left = {path.name for path in folder.iterdir()} - {name, f".{name}.state.json"}
        assert not [other for other in left if not other.endswith(".tmp")], left
        shutil.rmtree(folder)


def test_a_full_disk(small_disk, tmp_path, capsys):
    words = [word for word in ENGLISH if word.isalpha()]
    model = save_masked_lm(tmp_path / "model")
    texts = (" ".join(words[(i * step) % len(words)] for step in (1, 3, 5, 7, 11)) for i in range(200))
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    paths = {"pretrained_bert_model": str(model), "glue_dir": str(tmp_path), "task_name": "SST-2"}

    def arguments(folder):
        return [x for name, value in paths.items() for x in (f"--{name}", value)] + [
            "--output_dir",
            str(folder),
        ]

    run_stage(run, AugmentConfig, arguments(tmp_path / "whole"))
    folder = small_disk("64k") / "out"
    with pytest.raises(SystemExit) as stopped:
        run_stage(run, AugmentConfig, arguments(folder))
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert stopped.value.code == 1 and "No space left on device" in message
    assert message.endswith("Make room, then the same command goes on.")
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob(".*.blocks/*.json")}
    assert 0 < len(there) < 7 and not (folder / "train_aug.tsv").exists()
    small_disk("4m")
    computed = []
    write = Blocks.write
    patch = pytest.MonkeyPatch()
    patch.setattr(Blocks, "write", lambda self, b, *rest: (computed.append(b), write(self, b, *rest)))
    run_stage(run, AugmentConfig, arguments(folder))
    patch.undo()
    assert len(computed) == 7 - len(there)
    assert (folder / "train_aug.tsv").read_bytes() == (tmp_path / "whole" / "train_aug.tsv").read_bytes()
