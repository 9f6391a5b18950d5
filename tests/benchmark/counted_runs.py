"""Runs stages and counts each of their optimizer steps: counted_runs.py RUNS.json COUNTS.json.

RUNS.json: {name: [stage, [argument, ...]]}. Process 0 writes {name: [totals of a step, ...]}, each from one
fetch of a step's share to the next: with everything the loop does between steps. Left out are the first two,
in which gradients are checked and DDP and DeepSpeed learn the order of parameters, and the last, after which
is saved.
"""

import importlib
import json
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from tinybert_dist.benchmark.counters import Counting
from tinybert_dist.training.feed import PreparedFeed

STEPS: list[dict[str, float]] = []


def counted(self, first_step, num_steps, original=PreparedFeed.shares):
    for share in original(self, first_step, num_steps):
        with Counting() as counting:
            yield share
        STEPS.append(counting.totals())  # not of the last, after which the loop asks for no other


PreparedFeed.shares = counted
by_name = {}
for name, (stage, argv) in json.loads(Path(sys.argv[1]).read_text()).items():
    AcceleratorState._reset_state()
    GradientState._reset_state()
    STEPS.clear()
    importlib.import_module(f"tinybert_dist.stages.{stage}").main(argv)
    by_name[name] = STEPS[2:]
if PartialState().is_main_process:
    Path(sys.argv[2]).write_text(json.dumps(by_name))
PartialState().destroy_process_group()
