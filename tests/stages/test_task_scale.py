"""Augmented data in shards: several processes, another number of them, more rows than memory would hold."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_runs import flags, losses, task

from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.training import targets

HERE = Path(__file__).parent


def write_shards(folder, shards):
    """`folder` with one Parquet file for each list of (text, label)."""
    folder.mkdir()
    for i, rows in enumerate(shards):
        columns = {"sentence": [row[0] for row in rows], "label": [row[1] for row in rows]}
        pq.write_table(pa.table(columns), folder / f"part-{i:05d}.parquet")
    (folder / "manifest.json").write_text("{}")


@pytest.fixture
def augmented(workspace, sentences, tmp_path):
    """A task with 150 augmented rows in three shards, one row of them bad; and more.txt of 30 texts."""
    folder = tmp_path / "task"
    shutil.copytree(workspace / "task", folder)
    rows = [(text, "yes" if " the " in text else "no") for text in sentences[:150]]
    rows[70] = (rows[70][0], "perhaps")
    write_shards(folder / "train_aug", [rows[:50], rows[50:100], rows[100:]])
    (folder / "more.txt").write_text("\n".join(sentences[300:330]) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_then_one_give_what_one_gives(
    workspace, step_1, augmented, tmp_path, launch, monkeypatch, teacher_rows
):
    """Rows, order, kept logits and losses; the bad row is told by one process, where it is and at the end."""
    monkeypatch.setattr(targets, "BLOCK_ROWS", 64)
    options = {"student_model": step_1, "pred_distill": True, "data_dir": augmented, "aug_train": True}
    options |= {"unlabelled_file_path": augmented / "more.txt", "on_bad_record": "skip", "max_steps": None}
    options |= {"num_train_epochs": 2, "train_batch_size": 40, "save_step": 1, "eval_batch_size": 4}
    defaults = {"teacher_model": workspace / "teacher", "max_seq_length": 32, "learning_rate": 1e-3}
    defaults |= {"logging_steps": 1, "wandb_mode": "disabled", "gradient_accumulation_steps": 1}
    argv = flags({**defaults, **options, "output_dir": tmp_path / "two", "max_seconds": 1e-6})
    output = launch(HERE / "small_blocks.py", *argv).stdout
    assert "2 on cpu" in output and read_json(tmp_path / "two" / "outcome.json")["outcome"] == "interrupted"
    assert output.count("1 bad records passed over") == 2 and "part-00001.parquet:21" in output
    assert "train: 149 examples" in output and "unlabelled: 30 examples" in output
    # the constants of the run, such as micro-batches a step, stay those of its first start
    alone = task(workspace, tmp_path / "one", gradient_accumulation_steps=2, **options)
    assert sorted(teacher_rows) == list(range(179)) and alone["step"] == 10
    teacher_rows.clear()
    ended = task(workspace, tmp_path / "two", gradient_accumulation_steps=1, **options)
    assert ended["outcome"] == "finished" and teacher_rows == []
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    digests = [
        [sha256_of(file) for file in sorted((tmp_path / name / "teacher_logits").glob("*.npy"))]
        for name in ("one", "two")
    ]
    assert len(digests[0]) == 3 and digests[0] == digests[1], "the same bits, whoever computed them"
    assert ended["result"]["score"] == alone["result"]["score"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(workspace, step_1, tmp_path, capsys):
    """100,000 and 1,000,000 augmented rows through all of step 2: <= 5 % more memory that is not a file."""
    words = [w for w in (workspace / "vocab" / "vocab.txt").read_text().split() if w.isalpha()]
    peaks = {}
    for times in (1, 10):
        folder = tmp_path / f"times_{times}"
        shutil.copytree(workspace / "task", folder / "task")
        rng = np.random.default_rng(times)
        shards = (
            [(" ".join(row), "yes" if len(row[0]) > 4 else "no") for row in rng.choice(words, (50_000, 4))]
            for _ in range(2 * times)
        )
        write_shards(folder / "task" / "train_aug", shards)
        options = {"teacher_model": workspace / "teacher", "student_model": step_1, "pred_distill": True}
        options |= {"data_dir": folder / "task", "aug_train": True, "output_dir": folder / "run"}
        options |= {"max_seq_length": 32, "max_steps": 20, "train_batch_size": 32, "eval_batch_size": 256}
        argv = flags({**options, "wandb_mode": "disabled"})
        command = [sys.executable, HERE / "anonymous_memory.py", folder / "peak", *argv]
        subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        peaks[times] = int((folder / "peak").read_text())
        with capsys.disabled():
            print(f"\n{100_000 * times:,} rows: {peaks[times] / 2**20:.0f} MiB", end="")
    assert peaks[10] <= 1.05 * peaks[1]
