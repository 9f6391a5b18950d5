"""Teacher logits computed once and kept, so that no epoch of the prediction step runs the teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tinybert_dist.data.batches import Collator
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.teacher import Teacher, TeacherSignals
from tinybert_dist.files import fingerprint, fsync_folder, read_json, sha256_of, write_json
from tinybert_dist.micro_batch import MicroBatch
from tinybert_dist.training.evaluation import logits_of
from tinybert_dist.training.strategy import RunAccelerator, on_main


class KeptLogits:
    """Targets of the prediction loss by dataset row: [N, C] in the student's label order."""

    def __init__(self, logits_NC: np.ndarray, device: torch.device):
        # a few numbers a row, and looked up there without waiting for the device
        self.logits_NC = torch.from_numpy(np.ascontiguousarray(logits_NC, dtype=np.float32)).to(device)

    def __call__(self, batch: MicroBatch) -> TeacherSignals:
        return TeacherSignals(hidden={}, attention={}, logits=self.logits_NC[batch.rows_B])


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
    """Logits of every row from `folder`/teacher_logits.safetensors, else computed by all processes and kept.

    make_teacher: called only when they are not there; key: fingerprints of teacher, tokenizer and data; other
    logits than these, or damaged ones, are computed anew. Collective.
    """
    path, note, wanted = (
        folder / "teacher_logits.safetensors",
        folder / "teacher_logits.json",
        fingerprint(key),
    )
    if not on_main(accelerator, _is_whole, path, note, wanted):
        teacher = make_teacher()

        def forward(batch: MicroBatch) -> Tensor:
            logits = teacher(batch).logits
            assert logits is not None, "a teacher without logits"
            return logits

        logits_NC = logits_of(forward, num_classes, dataset, collate, accelerator, max_tokens)
        on_main(accelerator, _write, folder, path, note, logits_NC, wanted)
    return KeptLogits(load_file(path)["logits"], accelerator.device)


def _is_whole(path: Path, note: Path, key: str) -> bool:
    try:
        written = read_json(note)
        return written["key"] == key and written["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # none yet, or damaged


def _write(folder: Path, path: Path, note: Path, logits_NC: np.ndarray, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    temporary = path.with_suffix(".tmp")
    # numpy picks columns into column order, and safetensors would write its bytes as if they were rows
    save_file({"logits": np.ascontiguousarray(logits_NC, dtype=np.float32)}, temporary)
    temporary.replace(path)
    fsync_folder(folder)
    write_json(note, {"key": key, "rows": len(logits_NC), "sha256": sha256_of(path)})
