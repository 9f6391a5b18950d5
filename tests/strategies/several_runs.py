"""Runs stages one after another in one family of launched processes: importing costs seconds, a run one.

several_runs.py RUNS.json, a list of [stage, [argument, ...]].
"""

import importlib
import json
import sys

from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

for stage, argv in json.loads(open(sys.argv[1]).read()):
    AcceleratorState._reset_state()
    GradientState._reset_state()
    importlib.import_module(f"tinybert_dist.stages.{stage}").main(argv)
PartialState().destroy_process_group()
