"""Benchmarks of tiny models, as a command line would start them."""

from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.config import parse
from tinybert_dist.stages import benchmark


def arguments(workspace, **changes):
    """Flags of a benchmark of the workspace's models; a list: several values, None: left out."""
    options = {
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "max_seq_length": 32,
        "train_batch_size": 8,
        "measure_s": 0,
        "sweep_tokens": [32, 64],
    } | changes
    argv = []
    for name, value in options.items():
        if value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def options(workspace, **changes):
    """The same, parsed."""
    return parse(BenchmarkOptions, arguments(workspace, **changes))


def run(workspace, **changes):
    """Runs it; returns the figures."""
    return benchmark.run(options(workspace, **changes))
