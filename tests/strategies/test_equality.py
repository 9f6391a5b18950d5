"""The same job gives the same losses and gradients under every strategy, rank count and accumulation."""

import pytest
from conftest import STRATEGIES, gradient_difference, loss_difference

pytestmark = pytest.mark.dist
ACCUMULATIONS = (1, 2, 4)
LOSS_TOLERANCE = 1e-5  # 20 steps, every term
GRADIENT_TOLERANCE = 1e-6  # the first step, every parameter


def runs(stages, folder):
    """Every stage with every accumulation; all checkpoints are kept: gradients are read from the first."""
    for stage, options in stages.items():
        for accumulation in ACCUMULATIONS:
            changes = {"gradient_accumulation_steps": accumulation, "save_step": 1, "keep_checkpoints": 20}
            yield stage, options | changes | {"output_dir": folder / f"{stage}_{accumulation}"}


@pytest.fixture(scope="module")
def one_process(several_runs, stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process")
    result = several_runs("cpu", 1, list(runs(stages, folder)))
    assert result.stdout.count("1 on cpu, one process") == len(stages) * len(ACCUMULATIONS)
    return folder


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("config", STRATEGIES)
def test_equal_to_one_process(several_runs, stages, one_process, tmp_path, config, num_processes, capsys):
    if config == "cpu_2_processes" and num_processes == 1:
        config = "cpu"
    result = several_runs(config, num_processes, list(runs(stages, tmp_path)))
    name = STRATEGIES.get(config, "one process")
    assert result.stdout.count(f"{num_processes} on cpu, {name}") == len(stages) * len(ACCUMULATIONS)
    reference = {stage: one_process / f"{stage}_1" for stage in stages}
    table = []
    for stage in stages:
        for accumulation in ACCUMULATIONS:
            run = tmp_path / f"{stage}_{accumulation}"
            losses, gradients = (f(run, reference[stage]) for f in (loss_difference, gradient_difference))
            table.append((losses, gradients))
            with capsys.disabled():
                print(
                    f"\n{name:17} ranks {num_processes}  accumulation {accumulation}  {stage:15}  "
                    f"losses {losses:.1e}  gradients {gradients:.1e}",
                    end="",
                )
    assert max(losses for losses, _ in table) <= LOSS_TOLERANCE
    assert max(gradients for _, gradients in table) <= GRADIENT_TOLERANCE
