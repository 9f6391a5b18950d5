"""A run begun under any strategy goes on under any other, dropout on, as if nothing had happened."""

import pytest
import torch
from campaign import STEPS, STOP, STRATEGIES, metrics, stopped_at, stopped_options
from safetensors.torch import load_file

pytestmark = pytest.mark.dist
TOLERANCE = 1e-6
KINDS = {
    "one process": ("cpu", 1),
    **{STRATEGIES[c]: (c, 2) for c in ("cpu_2_processes", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")},
}


@pytest.mark.parametrize(
    "after",
    [pytest.param(k, marks=pytest.mark.slow if k in {"DDP", "DeepSpeed ZeRO-2"} else ()) for k in KINDS],
)
def test_resumes_what_any_strategy_saved(several_runs, campaign, stages, workspace, tmp_path, after, capsys):
    config, num_processes = KINDS[after]
    undisturbed = {kind: campaign(*KINDS[kind]).folder / "undisturbed" for kind in KINDS}
    options = [
        stopped_options(stages, workspace, KINDS[kind][1])
        | {"output_dir": stopped_at(STOP, undisturbed[kind], tmp_path / kind)}
        for kind in KINDS
    ]
    result = several_runs(config, num_processes, [("general_distill", one) for one in options])
    assert result.stdout.count(f"from step {STOP}") == len(KINDS)
    assert result.stdout.count(f"{num_processes} on cpu, {after}") == len(KINDS)
    for before in KINDS:
        ours, theirs = metrics(tmp_path / before)[-STEPS:], metrics(undisturbed["one process"])
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        difference = max(
            abs(a[key] - b[key]) / abs(b[key])
            for a, b in zip(ours, theirs, strict=True)
            for key in b
            if key.startswith("loss/") or key == "grad_norm"
        )
        weights = load_file(tmp_path / before / "model.safetensors")
        expected = load_file(undisturbed[before] / "model.safetensors")
        furthest = max(float((weights[name] - expected[name]).abs().max()) for name in expected)
        with capsys.disabled():
            print(f"\n{before:17} -> {after:17} losses {difference:.1e}  weights {furthest:.1e}", end="")
        assert difference <= TOLERANCE
        assert furthest <= (0 if before == after else TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["deepspeed_zero3", "fsdp2"])
def test_three_processes_divide_nothing_evenly(several_runs, campaign, stages, workspace, tmp_path, config):
    """Sizes that three does not divide: shards are padded; what two began goes on to the same numbers."""
    two = campaign(config).folder / "undisturbed"
    folder = stopped_at(STOP, two, tmp_path / "run")
    options = stopped_options(stages, workspace, 2) | {"output_dir": folder}
    result = several_runs(config, 3, [("general_distill", options)])
    assert f"3 on cpu, {STRATEGIES[config]}" in result.stdout and f"from step {STOP}" in result.stdout
    # as many micro-batches as two processes began with: the same draws, one dummy on the third
    for ours, theirs in zip(metrics(folder)[-STEPS:], metrics(two), strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=TOLERANCE), ours["step"]
    weights, expected = (load_file(f / "model.safetensors") for f in (folder, two))
    assert all(torch.allclose(weights[name], expected[name], rtol=0, atol=TOLERANCE) for name in expected)
