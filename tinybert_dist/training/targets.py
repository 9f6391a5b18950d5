"""Teacher logits computed once and kept, so that no epoch of the prediction step runs the teacher.

The folder holds blocks `logits-NNNNN.npy` (float32 [rows, C]) and logits.json with the key they belong to and
the sha256 of every finished block. A block is noted there once it is on the disk, whole.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.teacher import Teacher, TeacherSignals
from tinybert_dist.files import fingerprint, read_json, sha256_of, write_atomic, write_json
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.evaluation import logits_of
from tinybert_dist.training.heartbeat import beat
from tinybert_dist.training.strategy import RunAccelerator, on_main

BLOCK_ROWS = 1 << 16


class KeptLogits:
    """Targets of the prediction loss by dataset row, in the student's label order; blocks are [rows, C]."""

    def __init__(self, blocks: Sequence[np.ndarray], device: torch.device):
        self._blocks, self._device = blocks, device
        self._block_rows = len(blocks[0])

    def __call__(self, batch: MicroBatch) -> TeacherSignals:
        places = [divmod(row, self._block_rows) for row in batch.rows_B.numpy().tolist()]
        logits_BC = np.stack([self._blocks[block][row] for block, row in places])
        logits = torch.from_numpy(logits_BC).to(self._device, non_blocking=True)
        return TeacherSignals(hidden={}, attention={}, logits=logits)


def keep_logits(
    folder: Path,
    make_teacher: Callable[[], Teacher],
    num_classes: int,
    dataset: TokenDataset,
    collate: Collator,
    accelerator: RunAccelerator,
    *,
    key: dict[str, Any],
    max_tokens: int,
) -> KeptLogits:
    """Logits of every row, memory-mapped from `folder`; all processes compute and keep those missing there.

    make_teacher: called only when blocks are missing; key: fingerprints of teacher, tokenizer and data; other
    logits than these, or damaged ones, are computed anew. Collective.
    """
    starts = range(0, len(dataset), BLOCK_ROWS)
    kept = _KeptBlocks(folder, fingerprint({**key, "block_rows": BLOCK_ROWS}), len(starts))
    if missing := on_main(accelerator, kept.missing):
        teacher = make_teacher()

        def forward(batch: MicroBatch) -> Tensor:
            logits = teacher(batch).logits
            assert logits is not None, "a teacher without logits"
            return logits

        quiet = None if accelerator.is_main_process and len(starts) > 1 else True
        for block in tqdm(missing, desc="teacher", unit=f" x {BLOCK_ROWS:,} rows", disable=quiet):
            rows = range(starts[block], min(starts[block] + BLOCK_ROWS, len(dataset)))
            logits_NC = logits_of(forward, num_classes, dataset, collate, accelerator, max_tokens, rows)
            on_main(accelerator, kept.write, block, logits_NC)
    return KeptLogits(kept.map(), accelerator.device)


class _KeptBlocks:
    """The blocks on disk. `missing` and `write` are called by the main process alone."""

    def __init__(self, folder: Path, key: str, num_blocks: int):
        self._folder, self._key, self._num_blocks = folder, key, num_blocks
        self._note = folder / "logits.json"
        self._sha256: dict[str, str] = {}

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there, of another key, or damaged; the whole ones are known."""
        try:
            noted = read_json(self._note)
            listed = noted["sha256"] if noted["key"] == self._key else {}
        except (OSError, ValueError, KeyError, TypeError):
            listed = {}  # none yet, or damaged
        self._sha256 = {name: digest for name, digest in listed.items() if self._is_whole(name, digest)}
        return [block for block in range(self._num_blocks) if _name(block) not in self._sha256]

    def _is_whole(self, name: str, digest: str) -> bool:
        beat("verify")
        try:
            return sha256_of(self._folder / name) == digest
        except OSError:
            return False

    def write(self, block: int, logits_NC: np.ndarray) -> None:
        """Writes a block and notes it."""
        content = io.BytesIO()
        # numpy picks columns into column order, and rows are what is looked up
        np.save(content, np.ascontiguousarray(logits_NC, dtype=np.float32), allow_pickle=False)
        write_atomic(self._folder / _name(block), content.getvalue())
        self._sha256[_name(block)] = hashlib.sha256(content.getbuffer()).hexdigest()
        write_json(self._note, {"key": self._key, "sha256": self._sha256})

    def map(self) -> list[np.ndarray]:
        """Every block, read when it is looked at."""
        names = map(_name, range(self._num_blocks))
        return [np.asarray(np.load(self._folder / name, mmap_mode="r", allow_pickle=False)) for name in names]


def _name(block: int) -> str:
    return f"logits-{block:05d}.npy"
