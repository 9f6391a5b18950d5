"""Streamed text: its order, every row once, going on elsewhere, bad records, estimates."""

import os
import signal
from collections import Counter
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from stream_runs import BATCH, batches_of, epochs_of, lines_as_rows, rows_in, rows_of, run, stream_of, write
from torch.utils.data import get_worker_info

from tinybert_dist.config import UserError
from tinybert_dist.data import lanes as law
from tinybert_dist.data import stream as streams
from tinybert_dist.data import stream_lane
from tinybert_dist.data.batches import WorkerFailed
from tinybert_dist.data.stream_lane import Lane, Position
from tinybert_dist.models import load_tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of 8 rows, often inside a piece, and pieces of 600 bytes: a small text has many of them."""
    monkeypatch.setattr(stream_lane, "BATCH_SENTENCES", 3)
    monkeypatch.setattr(law, "MIN_BLOCK_ROWS", 8)
    monkeypatch.setattr(law, "MAX_BLOCK_ROWS", 8)
    monkeypatch.setattr(streams, "MIN_PIECE_BYTES", 600)


@pytest.fixture(scope="module")
def tokenizer(workspace):
    return load_tokenizer(workspace / "vocab")


@pytest.fixture(scope="module")
def lines(sentences):
    """Lines that differ from one another, in documents of about 20."""
    return ["" if i % 20 == 19 else sentence for i, sentence in enumerate(sentences)]


@pytest.fixture
def corpus(tmp_path, lines):
    folder = tmp_path / "corpus"
    write(folder / "a.txt", lines[:300])
    write(folder / "b.txt.gz", lines[300:400])
    write(folder / "c.txt", lines[400:])
    return folder


# --- order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["line", "pairs"])
def test_any_number_of_processes_and_workers_gives_the_same_batches(corpus, tokenizer, mode):
    stream = stream_of(corpus, tokenizer, mode)
    expected, positions, num_read = run(stream, 0, 12)
    assert all(sum(len(ids[0]) for ids, _ in step.values()) for step in expected)
    for world_size in (1, 2, 3, 4):
        for workers in (0, 1, 2) if world_size < 3 else (2,):
            got = run(stream, 0, 12, world_size, workers)
            assert got[0] == expected, (world_size, workers)
            assert got[1] == positions and got[2].tolist() == num_read.tolist()


def test_more_processes_than_micro_batches(corpus, tokenizer):
    stream = stream_of(corpus, tokenizer)
    assert run(stream, 0, 6, world_size=7)[0] == run(stream, 0, 6)[0]


def test_the_rows_of_a_step_do_not_depend_on_its_micro_batches(corpus, tokenizer):
    stream = stream_of(corpus, tokenizer)

    def rows(num_micro_batches):
        steps, _, _ = run(stream, 0, 10, num_micro_batches=num_micro_batches)
        return [sorted(rows_in(step, tokenizer)) for step in steps]

    assert [len(step) for step in rows(1)] == [BATCH] * 10
    assert rows(1) == rows(4) == rows(5)


def test_the_order_depends_on_the_seed_and_the_epoch(corpus, tokenizer):
    stream = stream_of(corpus, tokenizer)
    assert run(stream, 0, 3)[0] == run(stream_of(corpus, tokenizer), 0, 3)[0]
    assert run(stream, 0, 3)[0] != run(stream_of(corpus, tokenizer, seed=8), 0, 3)[0]
    lane = Lane(0, stream.deal(2, stream.rows_per_byte)[0][0], stream.reading, 8, Position())
    epochs = epochs_of(lane, 3)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1]
    third = len(epochs[0]) // 3  # not of the same pieces
    assert len(set(epochs[0][:third]) & set(epochs[1][:third])) < 0.75 * third


# --- every row once -----------------------------------------------------------------------------------------


FORMS = {
    "text": ["a.txt"],
    "gz": ["a.txt.gz"],
    "zst": ["a.txt.zst"],
    "json lines": ["a.jsonl"],
    "json lines gz": ["a.jsonl.gz"],
    "parquet": ["a.parquet"],
    "uneven gz": ["a.txt.gz", "b.txt.gz", "c.txt.gz"],
    "mixed": ["a.txt", "b.jsonl", "c.parquet", "d.txt.zst"],
}


@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
def test_an_epoch_holds_every_line_once(tmp_path, tokenizer, lines, names):
    shares = np.array_split(lines, len(names))
    if names == FORMS["uneven gz"]:
        shares = [lines[:2], lines[2:20], lines[20:]]
    for name, share in zip(names, shares, strict=True):
        write(tmp_path / "corpus" / name, list(share))
    stream = stream_of(tmp_path / "corpus", tokenizer)
    assert Counter(rows_of(stream)) == Counter(lines_as_rows(tokenizer, lines))
    # and through the loader, on more processes than there are files
    steps, _, _ = run(stream, 0, 20, world_size=4)
    assert steps == run(stream, 0, 20)[0]
    assert {len(rows_in(step, tokenizer)) for step in steps} == {BATCH}


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_record_is_read_by_one_process(tmp_path, tokenizer, lines, world_size):
    """Within the first epoch, with all its rows in the blocks at hand, all records have been read once."""
    write(tmp_path / "corpus.txt", lines)
    stream = stream_of(tmp_path / "corpus.txt", tokenizer)
    law.MIN_BLOCK_ROWS = law.MAX_BLOCK_ROWS = 10_000  # undone by the fixture
    _, positions, num_read = run(stream, 0, 3, world_size)
    assert {position.epoch for position in positions.values()} == {0}
    assert num_read.tolist() == [len(lines), 0]


@pytest.mark.parametrize(
    "shards",
    [{"a.txt": 1}, {"a.txt": 0, "b.txt": 40}, {"a.txt.gz": 1, "b.txt": 0, "c.txt": 100}, {"a.jsonl": 3}],
    ids=str,
)
@pytest.mark.parametrize("workers", [0, 2])
def test_few_and_empty_shards(tmp_path, tokenizer, lines, shards, workers):
    expected = []
    for name, count in shards.items():
        write(tmp_path / "corpus" / name, lines[:count])
        expected += lines_as_rows(tokenizer, lines[:count])
    stream = stream_of(tmp_path / "corpus", tokenizer)
    assert Counter(rows_of(stream)) == Counter(expected)
    steps, _, _ = run(stream, 0, 5, world_size=3, workers=workers)
    for step in steps:
        assert len(rows_in(step, tokenizer)) == BATCH  # for ever, in as many epochs as it takes


@pytest.mark.parametrize("where", ["memory://corpus", "hub:"])
def test_text_from_elsewhere(tmp_path, tokenizer, lines, where):
    if where == "hub:":
        write(tmp_path / "set" / "train-0.jsonl", lines[:100])
        write(tmp_path / "set" / "train-1.jsonl", lines[100:200])
        where += str(tmp_path / "set")
    else:
        files = {"a.txt": lines[:120], "b.txt": lines[120:200]}
        fsspec.filesystem("memory").pipe(
            {f"/corpus/{name}": ("\n".join(part) + "\n").encode() for name, part in files.items()}
        )
    stream = stream_of(where, tokenizer)
    assert Counter(rows_of(stream)) == Counter(lines_as_rows(tokenizer, lines[:200]))
    whole, _, _ = run(stream, 0, 20)
    assert {len(rows_in(step, tokenizer)) for step in whole} == {BATCH}
    steps, positions, _ = run(stream, 0, 9, world_size=3)
    assert steps + run(stream, 9, 20, workers=1, positions=positions)[0] == whole


def test_a_shard_of_blank_lines_gives_nothing_and_hangs_nothing(tmp_path, tokenizer, lines):
    write(tmp_path / "corpus" / "a.txt", lines[:10])
    write(tmp_path / "corpus" / "b.txt", [" "] * 400)
    stream = stream_of(tmp_path / "corpus", tokenizer)
    assert Counter(rows_of(stream)) == Counter(lines_as_rows(tokenizer, lines[:10]))
    steps, _, _ = run(stream, 0, 5)
    assert run(stream, 0, 5, world_size=2)[0] == steps
    assert 0 < len(rows_in(steps[0], tokenizer)) < BATCH  # nobody has the rows it was expected to have


def test_no_text_at_all(tmp_path, tokenizer):
    write(tmp_path / "corpus" / "a.txt", [" "] * 50)
    write(tmp_path / "corpus" / "b.txt", [])
    with pytest.raises(UserError, match="no text in 2 files"):
        stream_of(tmp_path / "corpus", tokenizer)


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["line", "pairs"])
@pytest.mark.parametrize("stops", [(1, 2), (3, 7), (7, 19), (20, 45)])
def test_going_on_elsewhere_gives_what_an_undisturbed_run_gives(corpus, tokenizer, mode, stops):
    """Stopped twice, in one epoch and across them; each part on other numbers of processes and workers."""
    stream = stream_of(corpus, tokenizer, mode)
    whole, end, num_read = run(stream, 0, 60)
    assert len({position.epoch for position in end.values()} | {0}) > 1
    steps, positions, first = [], None, 0
    for last, (world_size, workers) in zip((*stops, 60), [(2, 0), (3, 1), (1, 2)], strict=True):
        part, positions, counted = run(stream, first, last, world_size, workers, positions)
        steps, first = steps + part, last
    assert steps == whole
    assert positions == end and counted.tolist() == num_read.tolist()


def test_going_on_reads_nothing_that_came_before(tmp_path, tokenizer, lines):
    write(tmp_path / "corpus.txt", lines)
    told = []
    stream = stream_of(tmp_path / "corpus.txt", tokenizer)
    stream = replace(stream, reading=replace(stream.reading, on_read=told.append))
    size = (tmp_path / "corpus.txt").stat().st_size
    _, positions, _ = run(stream, 0, 18)
    assert sum(told) > 0.5 * size
    late = max(position.piece for position in positions.values())
    assert late >= 2
    told.clear()
    steps, _, _ = run(stream, 18, 19, positions=positions)
    assert sum(map(len, steps)) > 0
    # at most the pieces that a lane's block and the next one lie in
    largest = max(piece.size_bytes for piece in stream.pieces) + 200
    asked = sum(law.Turns(stream.deal(12, stream.rows_per_byte)[1], BATCH, 7).counts(18) > 0)
    assert 0 < sum(told) <= 2 * largest * asked


# --- bad data -----------------------------------------------------------------------------------------------


def test_lanes_come_to_their_next_blocks_in_turns(tmp_path, tokenizer, monkeypatch):
    """Else the loader rests and then has all its work at once."""
    num_lanes, block_rows = 12, 64
    monkeypatch.setattr(stream_lane, "BATCH_SENTENCES", 8)
    write(tmp_path / "corpus.txt", [f"sentence {i % 10} of many" for i in range(num_lanes * block_rows * 5)])
    monkeypatch.setattr(law, "MAX_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(law, "MIN_BLOCK_ROWS", block_rows)
    batches = batches_of(
        stream_of(tmp_path / "corpus.txt", tokenizer), num_lanes=num_lanes, batch_size=num_lanes
    )
    blocks, begun = {}, []
    for _ in batches.loader(0, 4 * block_rows, num_workers=0):
        now = {lane: position[:3] for lane, position in batches.positions.items()}
        begun.append(sum(now[lane] != blocks.get(lane) for lane in now))
        blocks = now
    assert sum(begun) >= 4 * num_lanes
    quarters = np.add.reduceat(begun[1:], np.arange(0, len(begun) - 1, block_rows // 4))
    assert quarters.max() <= num_lanes / 2, begun


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_is_named_or_counted(tmp_path, tokenizer, lines, workers):
    path = tmp_path / "corpus.txt"
    write(path, lines[:200])
    content = path.read_bytes().split(b"\n")
    content[150] = b"caf\xe9"
    path.write_bytes(b"\n".join(content))
    stream = stream_of(path, tokenizer)
    with pytest.raises(UserError, match=r"corpus\.txt:151: byte 0xe9.*--on_bad_record skip") as error:
        run(stream, 0, 20, workers=workers)
    assert "\n" not in str(error.value)  # one sentence, not the traceback of a worker
    skipping = stream_of(path, tokenizer, on_bad_record="skip")
    law.MIN_BLOCK_ROWS = law.MAX_BLOCK_ROWS = 10_000
    _, positions, num_read = run(skipping, 0, 3, workers=workers)
    assert {position.epoch for position in positions.values()} == {0}
    assert num_read.tolist() == [199, 1]


def kill_worker(num_bytes):
    if get_worker_info().id == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_named(corpus, tokenizer):
    stream = stream_of(corpus, tokenizer)
    stream = replace(stream, reading=replace(stream.reading, on_read=kill_worker))
    with pytest.raises(
        WorkerFailed, match=r"step 1: the batch of loader worker \d did not come.*exited unexpectedly"
    ):
        run(stream, 0, 5, workers=2)


# --- estimates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
def test_rows_of_an_epoch_are_estimated(tmp_path, tokenizer, lines, names, monkeypatch):
    monkeypatch.setattr(streams, "MIN_PIECE_BYTES", 4096)
    for name, share in zip(names, np.array_split(lines, len(names)), strict=True):
        write(tmp_path / "corpus" / name, list(share))
    stream = stream_of(tmp_path / "corpus", tokenizer)
    assert sum(stream.weights(stream.rows_per_byte)) == pytest.approx(len(rows_of(stream)), rel=0.25)
