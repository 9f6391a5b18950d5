"""The micro-batch sizes that are compared, what is recommended, and what happens when memory is out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_runs import arguments, options

from tinybert_dist.benchmark.subject import Subject
from tinybert_dist.benchmark.sweep import WORTH_IT, is_out_of_memory, sweep
from tinybert_dist.benchmark.table import advice
from tinybert_dist.files import read_json

LITTLE_MEMORY = Path(__file__).with_name("little_memory.py")
# one micro-batch of all rows takes more than twice what is left; one of 512 tokens a fraction of it
LARGE_STEPS = {
    "stages": ["general"],
    "train_batch_size": 512,
    "micro_batch_tokens": 512,
    "sweep_tokens": [256, 1_000_000],
    "warm_up_steps": 1,
    "layout": "fixed",
}
MEGABYTES_LEFT = 160


def sizes_of(workspace, accelerator, **changes):
    chosen = options(workspace, train_file_path=workspace / "corpus.txt", **changes)
    return sweep(Subject(chosen, accelerator).job("general"), chosen)


def test_the_fastest_of_the_table_is_recommended(workspace, accelerator):
    found = sizes_of(workspace, accelerator, sweep_tokens=[32, 64, 4096, 100_000], train_batch_size=16)
    rates = {row["micro_batch_tokens"]: row["tokens_per_s"] for row in found["sizes"]}
    assert list(rates) == [32, 64, found["default"]]  # larger than a step: all the same as the default
    counts = [row["micro_batches"] for row in found["sizes"]]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[1] > counts[2] == 1
    assert found["best"] == max(rates, key=rates.get)
    assert found["speedup"] == rates[found["best"]] / rates[found["default"]]
    assert found["use"] == (found["best"] if found["speedup"] >= WORTH_IT else found["default"])
    assert found["too_large"] == [] and all(row["memory_bytes"] > 0 for row in found["sizes"])
    assert found["accumulation"]["micro_batches"] == 1
    assert found["accumulation"]["finer_micro_batches"] == 4


def test_an_accumulation_that_was_asked_for_is_the_default(workspace, accelerator):
    found = sizes_of(workspace, accelerator, gradient_accumulation_steps=2, sweep_tokens=[32])
    assert [row["micro_batches"] >= 2 for row in found["sizes"]] == [True, True]
    assert found["accumulation"]["micro_batches"] == 2
    assert 6 < found["accumulation"]["finer_micro_batches"] <= 8  # of 8 rows some pieces may get none
    # a step of as few examples cannot be cut into more
    assert "accumulation" not in sizes_of(workspace, accelerator, train_batch_size=2)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"sizes": [1], "default": 8, "too_large": [], "step_tokens": 790.4},
            "a step has about 790 tokens, which no other size cuts differently",
        ),
        (
            {"sizes": [1, 2], "default": 8, "use": 8, "speedup": 1.02},
            "the default --micro_batch_tokens is as fast",
        ),
        (
            {"sizes": [1, 2], "default": 8, "use": 4, "speedup": 1.12},
            "use --micro_batch_tokens 4: 1.12x of the def",
        ),
        (
            {"sizes": [1, 2], "default": 8, "use": 4, "speedup": None},
            "use --micro_batch_tokens 4: the default does",
        ),
        ({"sizes": [], "default": 8}, "no size fits into memory: give a smaller --train_batch_size"),
    ],
)
def test_advice_says_what_to_set(found, words):
    assert advice(found).startswith(words)


def test_only_errors_of_memory_end_the_search_quietly():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError) as no_room:
        torch.empty(1 << 50)
    assert is_out_of_memory(no_room.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_memory_that_ends_ends_the_search_but_not_the_run(workspace, tmp_path):
    file = tmp_path / "figures.json"
    command = [
        sys.executable,
        LITTLE_MEMORY,
        "0",
        MEGABYTES_LEFT,
        *arguments(workspace, json=file, **LARGE_STEPS),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_json(file)["sweep"]
    assert found["too_large"] == [1_000_000]
    assert [row["micro_batch_tokens"] for row in found["sizes"]] == [256, 512]
    assert re.search(r"^ +1000000 +out of memory$", done.stdout, re.MULTILINE)
    assert advice(found) in done.stdout


@pytest.mark.dist
@pytest.mark.slow
def test_memory_that_ends_on_one_of_two_processes_ends_it_on_both(workspace, tmp_path, launch):
    file = tmp_path / "figures.json"
    changes = LARGE_STEPS | {"train_batch_size": 1024}  # each process has half of the rows
    launch(LITTLE_MEMORY, "1", MEGABYTES_LEFT, *arguments(workspace, json=file, **changes), timeout_s=200)
    result = read_json(file)
    assert result["processes"] == 2
    assert result["sweep"]["too_large"] == [1_000_000]
    assert [row["micro_batch_tokens"] for row in result["sweep"]["sizes"]] == [256, 512]
