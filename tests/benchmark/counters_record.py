"""tests/records/counters.json: what one optimizer step makes the machine do, by strategy and training.

Accept what the code does now: python tests/benchmark/counters_record.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

from counted_inputs import plan, write_inputs  # noqa: E402

RECORD = TESTS / "records" / "counters.json"
ACCEPT = "python tests/benchmark/counters_record.py"
TRAININGS = ("general", "general, 4 micro-batches", "step 1", "step 2", "fine-tuning")
SHARDED = TRAININGS[:2]
# configuration of accelerate: trainings counted under it
CONFIGS = {
    "cpu": TRAININGS,
    "cpu_2_processes": TRAININGS,
    "fsdp2": SHARDED,
    "deepspeed_zero1": SHARDED,
    "deepspeed_zero2": SHARDED,
    "deepspeed_zero3": SHARDED,
}
EXACT = ("host_reads", "collectives", "recompilations", "teacher_forwards", "tokens", "padded_tokens")
# at most so many times the record: kernels of another torch keep and launch a little more
BOUNDS = {"collective_bytes": 1.02, "saved_bytes": 1.02, "operations": 1.05}


def measure(config, folder):
    """{training: {counter: value a step, saved_bytes: the most}} of one launch."""
    runs, counts = folder / "runs.json", folder / "counts.json"
    runs.write_text(json.dumps(plan(write_inputs(folder / "inputs"), folder, CONFIGS[config])))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(TESTS.parent / "accelerate_configs" / f"{config}.yaml")]
    command += ["--num_processes", "1" if config == "cpu" else "2"]
    command += [str(Path(__file__).with_name("counted_runs.py")), str(runs), str(counts)]
    path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return {name: _of_a_step(steps) for name, steps in json.loads(counts.read_text()).items()}


def _of_a_step(steps):
    assert sum(step["steps"] for step in steps) == len(steps) == 5, "steps were not counted one by one"
    means = {name: round(sum(step[name] for step in steps) / len(steps), 3) for name in (*EXACT, *BOUNDS)}
    return means | {"saved_bytes": max(step["saved_bytes"] for step in steps)}


def differences(counted, recorded, config):
    """What moved, in words, one line for each counter."""
    lines = []
    for training, counters in counted.items():
        for name, value in counters.items():
            before = recorded[training][name]
            if (value != before) if name in EXACT else (value > BOUNDS[name] * before):
                lines.append(f"{config}: {training}: {name} of a step: {before:,g} -> {value:,g}")
    if lines:
        lines.append(f"If that is meant: {ACCEPT}")
    return lines


def main():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record = {}
    for config in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            record[config] = measure(config, Path(folder))
        print(f"{config}: {len(record[config])} trainings counted")
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
