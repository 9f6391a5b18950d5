"""Augmentation by several processes that share nothing but the folder: same bytes, whoever dies."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from command_lines import flags
from tiny_masked_lm import ENGLISH, save_masked_lm

from tinybert_dist.data import augment_blocks
from tinybert_dist.stages.augment import AugmentConfig, run

OUTPUT = "train_aug.tsv"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_masked_lm(tmp_path_factory.mktemp("ranks") / "model")


def write_task(folder, num_rows):
    words = [word for word in ENGLISH if word.isalpha()]
    texts = (" ".join(words[(i * step) % len(words)] for step in (1, 3, 5, 7, 11)) for i in range(num_rows))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    return folder


def options(model_dir, task, output_dir, **more):
    paths = {"pretrained_bert_model": model_dir, "glue_dir": task, "output_dir": output_dir}
    return {**paths, "task_name": "SST-2"} | more


def run_as(monkeypatch, rank, world_size, **config):
    """One process of a launcher, here."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    return run(AugmentConfig(**{k: str(v) if k.endswith(("dir", "model")) else v for k, v in config.items()}))


class Written(list):
    """(rank, block) of every block that is about to be written; `on_write` may kill the process there."""

    def on_write(self):
        pass


@pytest.fixture
def written(monkeypatch):
    write, log = augment_blocks.Blocks.write, Written()

    def logged(self, block, rows, facts):
        log.append((int(os.environ["RANK"]), block))
        log.on_write()
        write(self, block, rows, facts)

    monkeypatch.setattr(augment_blocks.Blocks, "write", logged)
    return log


def test_every_block_is_computed_once_whatever_the_number_of_ranks(tmp_path, model_dir, monkeypatch, written):
    task = write_task(tmp_path / "task", 150)  # 5 blocks of 32
    produced, summaries = {}, {}
    for world_size in (1, 2, 4, 7):
        written.clear()
        more = options(model_dir, task, tmp_path / str(world_size), batch_tokens=100 * world_size)
        ends = [run_as(monkeypatch, rank, world_size, **more) for rank in reversed(range(world_size))]
        assert sorted(written) == sorted((b % world_size, b) for b in range(5))
        assert [end["finished"] for end in ends[:-1]] == [False] * (world_size - 1)
        left = {rank: 5 - len(range(rank, 5, world_size)) for rank in range(world_size)}
        if world_size == 2:
            assert ends[0]["blocks_missing"] == left[1] == 3
        summaries[world_size] = ends[-1]
        produced[world_size] = (tmp_path / str(world_size) / OUTPUT).read_bytes()
        # a rank that comes late finds it finished
        rest = tmp_path / str(world_size) / f".{OUTPUT}.{'0' * 16}.blocks"  # and clears away what is left
        rest.mkdir()
        assert run_as(monkeypatch, world_size - 1, world_size, **more) == ends[-1] and not rest.exists()
        assert len(written) == 5
    assert len(set(produced.values())) == 1
    whole = summaries[1]
    for summary in summaries.values():
        for name in ("examples", "rows", "samples", "bad_records"):
            assert summary[name] == whole[name]
        assert summary["counts"]["queries_asked"] == whole["counts"]["queries_asked"]
    assert whole["examples"] == 150 and whole["rows"] == produced[1].count(b"\n") - 1


def test_a_killed_run_goes_on_with_another_number_of_ranks(tmp_path, model_dir, monkeypatch, written, capsys):
    task = write_task(tmp_path / "task", 200)  # 7 blocks
    run_as(monkeypatch, 0, 1, **options(model_dir, task, tmp_path / "whole"))
    config = options(model_dir, task, tmp_path / "killed")
    written.clear()

    def die():
        if len(written) == 3:
            raise KeyboardInterrupt

    written.on_write = die
    with pytest.raises(KeyboardInterrupt):
        run_as(monkeypatch, 1, 2, **config)
    assert written == [(1, 1), (1, 3), (1, 5)] and not (tmp_path / "killed" / OUTPUT).exists()
    written.on_write = lambda: None
    end = run_as(monkeypatch, 0, 3, **config)
    assert written[3:] == [(0, 0), (0, 6)]  # 3 of its blocks is there
    assert end["blocks_missing"] == 3 and "the same command goes on" in capsys.readouterr().out
    # one byte of a finished block turns over
    damaged = next((tmp_path / "killed").glob(".*.blocks")) / "0"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"0\n")
    assert run_as(monkeypatch, 0, 1, **config)["finished"]
    assert written[5:] == [(0, 0), (0, 2), (0, 4), (0, 5)]
    assert (tmp_path / "killed" / OUTPUT).read_bytes() == (tmp_path / "whole" / OUTPUT).read_bytes()
    # another option starts afresh
    run_as(monkeypatch, 0, 1, **config | {"p": 0.9})
    assert len(written) == 9 + 7


def test_on_several_machines_what_another_has_just_written_may_be_seen_late(tmp_path, model_dir, monkeypatch):
    """A launch on two: whoever ends first looks again, and so none ends well before the file is whole."""
    config = options(model_dir, write_task(tmp_path / "task", 64), tmp_path / "out")  # 2 blocks
    variables = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tinybert_dist.stages.augment", *flags(config)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    while not list((tmp_path / "out").glob(".*.blocks/0.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    time.sleep(1)
    assert first.poll() is None
    assert run_as(monkeypatch, 1, 2, **config)["finished"]
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 0 and "are not there yet" not in output


@pytest.mark.slow
@pytest.mark.dist
def test_launched_ranks_one_of_them_killed(tmp_path, model_dir, launch, monkeypatch):
    task = write_task(tmp_path / "task", 4096)  # 64 blocks of 64
    config = options(model_dir, task, tmp_path / "killed", N=8)
    process = launch("augment", *flags(config), num_processes=2, wait=False)
    give_up_at = time.monotonic() + 120
    folder = tmp_path / "killed"
    while len(list(folder.glob(".*.blocks/*.json"))) < 5:
        assert process.poll() is None and time.monotonic() < give_up_at, process.communicate()[0][-4000:]
        time.sleep(0.002)
    ranks = {
        int(child.environ()["RANK"]): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RANK" in child.environ()
    }
    assert sorted(ranks) == [0, 1] and ranks[1].environ()["WORLD_SIZE"] == "2"
    os.kill(ranks[1].pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (folder / OUTPUT).exists()
    there = {path.name for path in folder.glob(".*.blocks/*.json")}
    assert 5 <= len(there) < 64
    again = launch("augment", *flags(config), num_processes=1).stdout
    assert "new rows beside 4096 originals" in again
    run(
        AugmentConfig(
            **{k: str(v) if k != "N" else v for k, v in (config | {"output_dir": tmp_path}).items()}
        )
    )
    assert (folder / OUTPUT).read_bytes() == (tmp_path / OUTPUT).read_bytes()
    both = launch("augment", *flags(config | {"output_dir": tmp_path / "both"}), num_processes=2).stdout
    # both may see the last block done, and join the same bytes
    assert both.count("new rows beside 4096 originals") in {1, 2} and "64 blocks for 2 processes" in both
    assert (tmp_path / "both" / OUTPUT).read_bytes() == (tmp_path / OUTPUT).read_bytes()
