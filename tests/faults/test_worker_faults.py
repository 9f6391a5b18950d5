"""Loader workers that die at the worst moments: while a batch is handed over, while a failure is recorded."""

import errno
import multiprocessing
import os
import re
import signal
import threading
import time

import pytest
from jobs import arguments, outcome
from torch.utils.data import Dataset

from tinybert_dist import files
from tinybert_dist.data.batches import WorkerFailed, prefetched
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.stages import general_distill


class CutOff:
    """An item whose connection breaks while it is handed over, before its worker's death is known."""

    def __reduce__(self):
        return _cut_off, (os.getpid(),)


def _cut_off(worker):
    threading.Timer(0.3, os.kill, (worker, signal.SIGKILL)).start()
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class Items(Dataset):
    def __getitem__(self, i):
        return CutOff() if i == 3 else i


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named():
    items = prefetched(Items(), 7, sampler=range(8), num_workers=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerFailed, match=r"step 11: .* loader worker 1 .*\(pid.* is killed by signal"):
        next(items)


def test_a_worker_that_dies_while_a_failure_is_recorded_does_not_undo_the_record(
    workspace, tmp_path, monkeypatch
):
    killed, forward = [], Distiller.forward

    def broken(*arguments):
        if not multiprocessing.active_children():
            return forward(*arguments)  # a trial before training
        monkeypatch.setattr(files.os, "fsync", kill_a_worker)
        raise OSError(errno.EIO, "Input/output error", "tokens-00000.arrow")

    def kill_a_worker(_):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()
            time.sleep(0.3)  # a handler of its signal would run here

    monkeypatch.setattr(Distiller, "forward", broken)
    with pytest.raises(OSError, match=re.escape("tokens-00000.arrow")):
        general_distill.main(arguments(workspace, tmp_path / "run", num_workers=1, max_steps=100))
    record = outcome(tmp_path / "run")
    assert killed and (record["outcome"], record["resumable"]) == ("failed", True)
    assert "Input/output error" in record["reason"]
