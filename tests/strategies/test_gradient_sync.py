"""Gradients that do not meet, the fault of the original and of most of its peers, are caught by name."""

import re
from pathlib import Path

import pytest
from campaign import STRATEGIES
from command_lines import flags

from tinybert_dist.files import read_json

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    ("config", "fault", "message"),
    [
        ("cpu_2_processes", "bypass", r"step 1: the gradient of model\.\S+ .* of process 1 differs"),
        (
            "cpu_2_processes",
            "left_out",
            r"step 1: the gradient of projections\.0\.weight \(and 1 more\) of process 1 differs",
        ),
        pytest.param(
            "fsdp2", "bypass", r"the first step gave no gradient to model\.", marks=pytest.mark.slow
        ),
        pytest.param(
            "fsdp2",
            "left_out",
            r"step 1: the gradient of projections\.0\.weight \(and 1 more\) of process 1 differs",
            marks=pytest.mark.slow,
        ),
        ("deepspeed_zero3", "bypass", r"the first step gave no gradient to model\."),
    ],
)
def test_gradients_that_do_not_meet(launch, stages, tmp_path, config, fault, message):
    options = stages["general_distill"] | {"output_dir": tmp_path / "run"}
    script = Path(__file__).with_name("unsynchronised.py")
    result = launch(script, fault, *flags(options), config=config, check=False)
    assert f"2 on cpu, {STRATEGIES[config]}" in result.stdout
    assert result.returncode != 0
    assert re.search(message, result.stdout), result.stdout[-3000:]
    assert "called through the wrapper" in result.stdout
    outcome = read_json(tmp_path / "run" / "outcome.json")
    assert outcome["outcome"] == "failed" and re.search(message, outcome["reason"])
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
