"""general_distill with a fault: FAULT="hang 1 3" makes process 1 hang in optimizer step 3.

Each fault says "FAULT <kind>" on stderr when it fires, so that a test can assert that it did.
"""

import ctypes
import errno
import math
import os
import sys
import time

from tinybert_dist.config import UserError
from tinybert_dist.data.batches import StepBatches
from tinybert_dist.distill.modules import Distiller
from tinybert_dist.stages import general_distill
from tinybert_dist.training import attempt
from tinybert_dist.training.checkpoint import Checkpoints
from tinybert_dist.training.heartbeat import progress

KIND, PROCESS, STEP = os.environ.get("FAULT", "none -1 0").split()


def fires(kind: str, step: int) -> bool:
    if (kind, os.environ.get("RANK", "0"), step) != (KIND, PROCESS, int(STEP)):
        return False
    print(f"FAULT {kind}", file=sys.stderr, flush=True)
    return True


def fetch(self, step, original=StepBatches.__getitem__):
    if fires("hang", step + 1):
        time.sleep(1000)
    if fires("hold_interpreter", step + 1):
        time.sleep(1.5)  # until a heartbeat has told where this is
        ctypes.PyDLL(None).sleep(1000)  # no other thread of Python runs meanwhile
    if fires("os_error", step + 1):
        raise OSError(errno.EIO, "Input/output error", "tokens-00000.arrow")
    if fires("user_error", step + 1):
        raise UserError("tokens-00000.arrow:7: not a sequence. Prepare the corpus anew.")
    return original(self, step)


def forward(self, *arguments, original=Distiller.forward):
    if fires("hang_in_forward", progress.step):
        time.sleep(1000)
    sums = original(self, *arguments)
    if fires("nan", progress.step):
        sums = {name: value * math.nan for name, value in sums.items()}
    if fires("nan_gradient", progress.step):
        sums = {name: value.clone() for name, value in sums.items()}
        for value in sums.values():
            value.register_hook(lambda gradient: gradient * math.nan)
    return sums


def save(self, parameters, moments, state, original=Checkpoints.save):
    if fires("hang_in_save", state["step"]):
        time.sleep(1000)
    if fires("slow_save", state["step"]):
        time.sleep(3)
    return original(self, parameters, moments, state)


def no_locks(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")


StepBatches.__getitem__, Distiller.forward, Checkpoints.save = fetch, forward, save
attempt.WAIT_S = 1.0
if KIND == "no_locks":
    attempt.fcntl.lockf = no_locks
if __name__ == "__main__":
    general_distill.main(sys.argv[1:])
