"""A run begun under any strategy goes on under any other, dropout on, as if nothing had happened."""

import shutil

import pytest
from conftest import STRATEGIES, metrics
from safetensors.torch import load_file

pytestmark = pytest.mark.dist
STEPS, STOP = 12, 6
TOLERANCE = 1e-6
# configuration and processes; the cut into micro-batches is the same, so the draws of dropout are
KINDS = {
    "one process": ("cpu", 1),
    **{STRATEGIES[c]: (c, 2) for c in ("cpu_2_processes", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")},
}


def options(stages, workspace, kind):
    return stages["general_distill"] | {
        "student_model": workspace / "student.json",  # with dropout
        "max_steps": STEPS,
        "save_step": STOP,
        "gradient_accumulation_steps": 2 // KINDS[kind][1],
    }


@pytest.fixture(scope="module")
def undisturbed(several_runs, stages, workspace, tmp_path_factory):
    """A finished run of every kind."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind, (config, num_processes) in KINDS.items():
        run = options(stages, workspace, kind) | {"output_dir": folder / kind}
        result = several_runs(config, num_processes, [("general_distill", run)])
        assert f"{num_processes} on cpu, {kind}" in result.stdout
    return folder


def stopped_at(step, finished, folder):
    """The folder as it was when only the checkpoint of `step` was there."""
    shutil.copytree(finished, folder)
    (folder / "outcome.json").unlink()
    (folder / "model.safetensors").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name != f"step-{step:08d}":
            shutil.rmtree(checkpoint)
    return folder


@pytest.mark.parametrize("after", KINDS)
def test_resumes_what_any_strategy_saved(
    several_runs, stages, workspace, undisturbed, tmp_path, after, capsys
):
    config, num_processes = KINDS[after]
    runs = [
        options(stages, workspace, before)
        | {"output_dir": stopped_at(STOP, undisturbed / before, tmp_path / before)}
        for before in KINDS
    ]
    result = several_runs(config, num_processes, [("general_distill", run) for run in runs])
    assert result.stdout.count(f"from step {STOP}") == len(KINDS)
    assert result.stdout.count(f"{num_processes} on cpu, {after}") == len(KINDS)
    for before in KINDS:
        ours, theirs = metrics(tmp_path / before)[-STEPS:], metrics(undisturbed / "one process")
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        difference = max(
            abs(a[key] - b[key]) / abs(b[key])
            for a, b in zip(ours, theirs, strict=True)
            for key in b
            if key.startswith("loss/") or key == "grad_norm"
        )
        weights, expected = (load_file(f / before / "model.safetensors") for f in (tmp_path, undisturbed))
        furthest = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
        with capsys.disabled():
            print(f"\n{before:17} -> {after:17} losses {difference:.1e}  weights {furthest:.1e}", end="")
        assert difference <= TOLERANCE
        assert furthest <= (0 if before == after else TOLERANCE)
