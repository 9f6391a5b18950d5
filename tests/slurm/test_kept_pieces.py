"""Stages that keep what they have finished, stopped before the time limit: nothing of it is done twice."""

import re

import pytest
from command_lines import flags

from tinybert_dist.files import sha256_of

pytestmark = pytest.mark.slurm
TWO_NODES = ["--nodes=2"]


def blocks(folder):
    """Finished blocks of an augmented file, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(".*.blocks/*.json")}


@pytest.fixture
def augmenting(folder):
    """Arguments of an augmentation of 64 blocks; the file beside the data, options in a file."""
    from tiny_masked_lm import ENGLISH, save_masked_lm

    model = save_masked_lm(folder / "model")
    words = [word for word in ENGLISH if word.isalpha()]
    rows = [" ".join(words[i * step % len(words)] for step in range(1, 30)) + f" {i}\t1" for i in range(2048)]
    (folder / "lines.txt").write_text("\n".join(rows) + "\n")
    (folder / "options.yaml").write_text(f"data_path: {folder / 'lines.txt'}\nN: 4\nwandb_mode: disabled\n")
    return flags({"pretrained_bert_model": model, "config": folder / "options.yaml"})


def test_augmentation_goes_on_with_the_next_block(slurm, submit, folder, augmenting):
    job = submit("augment", *augmenting, sbatch=TWO_NODES)
    job.until_that(lambda: len(blocks(folder)) >= 4)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    job.until(r"stopped with \d+ pieces finished; back into the queue")
    kept = blocks(folder)
    assert 4 <= len(kept) < 64
    job.until_that(lambda: len(blocks(folder)) > len(kept))
    assert kept.items() <= blocks(folder).items(), "finished blocks were made again"
    assert job.ended() == ("COMPLETED", 1), job.log
    once = submit("augment", *augmenting, *flags({"output_dir": folder / "once"}))
    assert once.ended() == ("COMPLETED", 0), once.log
    assert sha256_of(folder / "lines_aug.txt") == sha256_of(folder / "once" / "lines_aug.txt")


def test_preempted_augmentation_puts_itself_back(slurm, submit, folder, augmenting):
    nodes = "--nodelist=node[1-2]"
    job = submit("augment", *augmenting, sbatch=[*TWO_NODES, nodes, "--partition=low"])
    job.until_that(lambda: len(blocks(folder)) >= 4)
    other = slurm.sbatch(
        "--partition=debug", "--nodes=2", nodes, "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"
    )
    assert slurm.wait(other)["JobState"] == "COMPLETED"
    assert job.ended() == ("COMPLETED", 1), job.log
    assert (folder / "lines_aug.txt").is_file()


def test_scancel_of_an_augmentation_is_final(slurm, submit, folder, augmenting):
    job = submit("augment", *augmenting)
    job.until_that(lambda: blocks(folder))
    slurm.run("scancel", job.id)
    assert job.ended() == ("CANCELLED", 0), job.log


def test_a_corpus_goes_on_with_the_next_piece(slurm, submit, shared_workspace, folder):
    (folder / "text").mkdir()
    text = (shared_workspace / "corpus.txt").read_text()
    for i in range(12):
        (folder / "text" / f"part{i}.txt").write_text(f"{text}\n" * 600 + f"part {i}\n")
    options = {"train_file_path": folder / "text", "teacher_model": shared_workspace / "teacher"}
    arguments = flags(options | {"output_dir": folder / "tokens"})
    job = submit("prepare_corpus", *arguments)
    job.until_that(lambda: list(folder.glob("tokens/part-*")))
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    assert job.ended() == ("COMPLETED", 1), job.log
    stopped = re.search(r"stopped with (\d+) pieces finished; back into the queue", job.log)
    assert stopped and 1 <= int(stopped[1]) < 12, job.log
    assert len(list(folder.glob("tokens/part-*"))) == 12 and not list(folder.glob("tokens/.part-*"))
    again = submit("prepare_corpus", *arguments)
    assert again.ended() == ("COMPLETED", 0) and "unchanged, nothing tokenised" in again.log
