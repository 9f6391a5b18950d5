"""What is read of token folders, and what is held: files, memory, pages, bytes of a disk."""

import mmap
import os
import tracemalloc
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from token_folders import make_rows, write

from tinybert_dist.data import batches, order
from tinybert_dist.data.batches import Collator, StepBatches, evaluation_batches
from tinybert_dist.data.order import Order
from tinybert_dist.data.token_manifest import write_joined_manifest
from tinybert_dist.data.tokens import TokenDataset

VOCAB_SIZE = 30522


def test_no_file_stays_open(tmp_path):
    """A corpus may have more shards than a process may have open files."""
    if not (descriptors := Path("/proc/self/fd")).is_dir():
        pytest.skip("the open files of a process are counted on Linux")
    folder = write(tmp_path / "t", *make_rows(200), rows_per_shard=2)
    before = len(list(descriptors.iterdir()))
    dataset = TokenDataset.open(folder)
    assert len(dataset._shards) == 100 and len(list(descriptors.iterdir())) < before + 5


def write_lines(folder, num_rows, num_tokens, rows_per_shard=1 << 16):
    """Rows of one length, of 1.5 bytes a token as real text: every other id is one of a hundred."""
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (512, num_tokens), dtype=np.uint16)
    ids[:, ::2] %= 100
    rows = list(ids) * -(-num_rows // len(ids))
    starts = [num_tokens] * num_rows
    return write(folder, rows[:num_rows], starts, vocab_size=VOCAB_SIZE, rows_per_shard=rows_per_shard)


def held_bytes(folder):
    """The most that opening a folder and computing steps takes beyond what was there."""
    tracemalloc.start()
    dataset = TokenDataset.open(folder)
    law = Order(len(dataset), 64, 0)
    batches = StepBatches(dataset, law, Collator("packed", 0), 1, None, 0, 1)
    for step in (0, 1, law.steps_per_epoch // 2, law.steps_per_epoch - 1, law.steps_per_epoch):
        batches[step]
    list(islice(evaluation_batches(dataset, Collator("packed", 0), 1000, 0, 1), 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_ten_times_the_rows_take_no_more_memory(tmp_path, monkeypatch):
    """Windows of 16,384 rows: 3 and 30 of them."""
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 16)
    monkeypatch.setattr(batches, "EVALUATED_ROWS", 1 << 14)
    small, large = (write_lines(tmp_path / str(n), n, 4) for n in (49_152, 491_520))
    held_bytes(small)  # imports, caches of libraries
    once, ten_times = held_bytes(small), held_bytes(large)
    assert ten_times < 1.05 * once, (once, ten_times)


def own_memory(folder):
    """Most bytes of this process's own that are in memory (mapped files are not) while it computes steps."""
    dataset, own = TokenDataset.open(folder), []
    law = Order(len(dataset), 256, 0)
    batches = StepBatches(dataset, law, Collator("packed", 0), 1, None, 0, 1)
    for start in range(0, law.steps_per_epoch + 1, law.steps_per_epoch // 10):
        for step in range(start, start + 50):
            batches[step]
            lines = Path("/proc/self/status").read_text().splitlines()
            own.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")))
    return len(dataset), max(own)


@pytest.mark.slow
def test_a_process_needs_no_more_memory_for_ten_times_the_rows(tmp_path):
    """Windows as they are, of a million rows; ten times the rows are the same files ten times."""
    if not Path("/proc/self/status").exists():
        pytest.skip("a process's own memory is counted on Linux")
    write_lines(tmp_path / "part", 1 << 20, 8)
    found = []
    for times in (3, 30):
        write_joined_manifest(tmp_path, ["part"] * times, {})
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.append(pool.submit(own_memory, tmp_path).result())
    (rows, once), (ten_times_the_rows, ten_times) = found
    print(f"{rows:,} rows: {once / 2**20:.1f} MiB; {ten_times_the_rows:,} rows: {ten_times / 2**20:.1f} MiB")
    assert ten_times_the_rows == 10 * rows and ten_times < 1.05 * once


def pages_of(dataset, rows):
    """Pages that hold the ids, offsets and segment starts of rows."""
    pages = set()
    for shard, row in dataset._places(rows):
        arrays = [shard.segment_b[row : row + 1]]
        for values, offsets in (shard.lead, shard.rest):
            arrays += [offsets[row : row + 2], values[offsets[row] : offsets[row + 1]]]
        for array in filter(len, arrays):
            first = array.ctypes.data // mmap.PAGESIZE
            pages.update(range(first, (array.ctypes.data + array.nbytes - 1) // mmap.PAGESIZE + 1))
    return pages


@pytest.mark.parametrize(("num_tokens", "most"), [(26, 1.45), (128, 1.12)])
def test_an_epoch_reads_a_page_about_once(tmp_path, monkeypatch, num_tokens, most):
    """A page is read again in another window only where blocks meet on it: in five arrays, at both ends."""
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 4)
    dataset = TokenDataset.open(write_lines(tmp_path / "t", 40_000, num_tokens, rows_per_shard=10_000))
    law = Order(len(dataset), 512, 0)
    read = defaultdict(set)
    for step in range(law.steps_per_epoch):
        rows = law.rows(step)
        for window, first, last in law.pieces(step):
            read[window] |= pages_of(dataset, rows[: last - first])
            rows = rows[last - first :]
    all_pages = pages_of(dataset, range(len(dataset)))
    assert len(read) == 10
    assert 1 < sum(map(len, read.values())) / len(all_pages) < most


def read_bytes():
    """What this process has had read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


@pytest.fixture
def cold(tmp_path):
    """Makes a function that takes a folder's files out of the page cache; skips where that cannot be seen."""
    if not Path("/proc/self/io").exists():
        pytest.skip("bytes read from a disk are counted on Linux")

    def forget(folder):
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "file").write_bytes(bytes(1 << 20))
    forget(probe)
    before = read_bytes()
    (probe / "file").read_bytes()
    if read_bytes() - before < 1 << 20:
        pytest.skip(f"{tmp_path} is not on a disk whose reads are counted")
    return forget


def test_a_disk_is_read_for_what_is_used_alone(tmp_path, cold):
    """Whatever the system would read around it; and what is read ahead is not read again."""
    folder = write_lines(tmp_path / "t", 300_000, 26)
    size = sum(path.stat().st_size for path in folder.iterdir())
    cold(folder)
    before = read_bytes()
    dataset = TokenDataset.open(folder)
    opened = read_bytes() - before
    assert 0 < opened < size / 50, "opening reads no rows"
    blocks = [range(i, i + 1024) for i in range(0, 300_000 - 1024, 8192)]
    dataset.read_ahead(blocks)
    ahead = read_bytes() - before - opened
    used = len(blocks) * 1024 * (26 * 1.5 + 4 + 4 + 4)
    assert used <= ahead < 1.3 * used
    dataset.fetch(np.concatenate([np.arange(b.start, b.stop) for b in blocks]))
    assert read_bytes() - before - opened < 1.01 * ahead
