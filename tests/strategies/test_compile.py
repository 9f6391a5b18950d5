"""`accelerate launch --dynamo_backend ...` compiles the student: the numbers of the uncompiled run."""

import pytest
from campaign import loss_difference, metrics
from command_lines import flags
from transformers import AutoModel

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STEPS = 6


@pytest.fixture(scope="module")
def uncompiled(launch, stages, tmp_path_factory):
    """Options without dropout, which inductor and other micro-batches draw otherwise, and their run."""
    options = stages["general_distill"] | {"max_steps": STEPS}
    folder = tmp_path_factory.mktemp("uncompiled") / "run"
    launch("general_distill", *flags(options | {"output_dir": folder}), num_processes=1)
    return options, folder


@pytest.mark.parametrize(("backend", "num_processes"), [("inductor", 1), ("aot_eager", 2)])
def test_a_compiled_student_learns_the_same(launch, uncompiled, tmp_path, backend, num_processes):
    options, reference = uncompiled
    arguments = flags(options | {"output_dir": tmp_path / "run"})
    launcher = ("--dynamo_backend", backend, "--dynamo_use_dynamic")
    result = launch("general_distill", *arguments, num_processes=num_processes, launcher=launcher)
    assert f"{num_processes} on cpu" in result.stdout and len(metrics(tmp_path / "run")) == STEPS
    assert loss_difference(tmp_path / "run", reference) < 1e-5
    _, loading = AutoModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
