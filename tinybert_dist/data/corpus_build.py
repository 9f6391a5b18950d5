"""Pieces to parts, in one process or several, with one progress bar over the bytes of all."""

import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tinybert_dist.config import StageFailed
from tinybert_dist.data.corpus_part import Recipe, build_part, is_finished, part_name
from tinybert_dist.data.corpus_pieces import content_of, require_unchanged
from tinybert_dist.data.sources import Piece
from tinybert_dist.data.word_pieces import WordPieces

PLAIN_PROGRESS_EVERY_S = 10.0
POLL_S = 0.2


class Built(NamedTuple):
    """A piece that has its part; `is_new` if it was tokenised now, in `cpu_s`."""

    content: str
    part: str
    is_new: bool = False
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Builder:
    """Builds the part of a piece, unless it is there."""

    folder: Path
    words: WordPieces
    recipe: Recipe
    on_bad_record: str

    def find(self, piece: Piece, content: str | None) -> Built | None:
        """The part of a piece of known content, if it is finished."""
        if content is None:
            return None
        part = part_name(piece, content, self.recipe, self.words.fingerprint)
        return Built(content, part) if is_finished(self.folder / part, self.on_bad_record) else None

    def build(self, piece: Piece, content: str | None, on_read: Callable[[int], object]) -> Built:
        """Without `content`, known from earlier, the piece is read for it. Raises what build_part raises."""
        told = 0

        def tell(num_bytes: int) -> None:
            nonlocal told
            num_bytes = min(num_bytes, piece.size_bytes - told)
            told += num_bytes
            on_read(num_bytes)

        start_cpu_s = time.process_time()
        # afterwards the piece lies in the page cache: the disk is read once
        content = content or content_of(piece)
        built = self.find(piece, content)
        if built:
            require_unchanged(piece)
        else:
            part = part_name(piece, content, self.recipe, self.words.fingerprint)
            gc.freeze()  # else a tenth of the time goes into looking through what was there before
            try:
                args = (self.words, self.recipe, self.on_bad_record, tell)
                build_part(piece, content, self.folder / part, *args)
            finally:
                gc.unfreeze()
            built = Built(content, part, True, time.process_time() - start_cpu_s)
        tell(piece.size_bytes)
        return built


def build_all(
    builder: Builder, jobs: Sequence[tuple[Piece, str | None]], num_workers: int, progress: bool
) -> list[Built]:
    """Builds the parts of (piece, known content), results in order; a process takes the next when it is free.

    Raises the first error; what the other processes have in hand is finished before.
    """
    with Progress([piece for piece, _ in jobs], progress) as bar:
        if num_workers <= 1 or len(jobs) <= 1:
            results = []
            for piece, content in jobs:
                results.append(builder.build(piece, content, bar.update))
                bar.piece_done()
            return results
        return _build_in_processes(builder, jobs, min(num_workers, len(jobs)), bar)


def _build_in_processes(
    builder: Builder, jobs: Sequence[tuple[Piece, str | None]], num_workers: int, bar: "Progress"
) -> list[Built]:
    # spawn: a forked copy of a process with running threads (tokenizers, torch) may deadlock
    context = multiprocessing.get_context("spawn")
    read_bytes = context.Value("q", 0)
    with ProcessPoolExecutor(num_workers, context, _start_worker, (builder, read_bytes)) as pool:
        # the largest first: no process is left alone with it at the end
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i][0].size_bytes)
        futures = {i: pool.submit(_build_in_worker, *jobs[i]) for i in order}
        waiting, shown_bytes = set(futures.values()), 0
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
                now_bytes = read_bytes.value
                bar.update(now_bytes - shown_bytes)
                shown_bytes = now_bytes
                for future in done:
                    future.result()
                    bar.piece_done()
        except BrokenProcessPool as error:
            reason = "a process was killed, perhaps for want of memory"
            raise StageFailed(
                f"tokenising: {reason}. The same command goes on; fewer --num_workers?"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [futures[i].result() for i in range(len(jobs))]


_worker: tuple[Builder, Any] | None = None  # of this process, so that it keeps the words it has met


def _start_worker(builder: Builder, read_bytes: Any) -> None:
    global _worker  # noqa: PLW0603
    _worker = (builder, read_bytes)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a parent that is killed cannot end its pool, and the processes would wait for work for ever
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _build_in_worker(piece: Piece, content: str | None) -> Built:
    assert _worker is not None
    builder, read_bytes = _worker

    def add(num_bytes: int) -> None:
        with read_bytes.get_lock():
            read_bytes.value += num_bytes

    return builder.build(piece, content, add)


class Progress:
    """Bytes read of the input, and pieces: a bar in a terminal, now and then a line elsewhere."""

    def __init__(self, pieces: Sequence[Piece], show: bool) -> None:
        self._total_bytes, self._done_bytes = sum(piece.size_bytes for piece in pieces), 0
        self._num_pieces, self._num_done = len(pieces), 0
        self._started_at = self._printed_at = time.monotonic()
        self._plain = show and bool(pieces) and not sys.stderr.isatty()
        self._bar = tqdm(
            total=self._total_bytes or None,
            unit="B",
            unit_scale=True,
            desc="tokenising",
            disable=self._plain or not show or not pieces,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, num_bytes: int) -> None:
        """Adds bytes read."""
        self._done_bytes += num_bytes
        self._bar.update(num_bytes)
        if self._plain and time.monotonic() - self._printed_at >= PLAIN_PROGRESS_EVERY_S:
            self._print()

    def piece_done(self) -> None:
        """Counts a piece."""
        self._num_done += 1
        self._bar.set_postfix_str(self._pieces_done(), refresh=False)

    def _pieces_done(self) -> str:
        return f"{self._num_done}/{self._num_pieces} pieces"

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        elapsed_s = self._printed_at - self._started_at
        total = self._total_bytes or None
        meter = tqdm.format_meter(
            self._done_bytes,
            total,
            elapsed_s,
            unit="B",
            unit_scale=True,
            ncols=0,
            postfix=self._pieces_done(),
        )
        print(f"tokenising {meter}", file=sys.stderr, flush=True)
