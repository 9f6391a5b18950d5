"""Every file of accelerate_configs/ starts what it says, with real processes (CPUs stand in for GPUs)."""

import socket
import subprocess
from pathlib import Path

import pytest
from campaign import SHARDINGS, STRATEGIES
from command_lines import flags

pytestmark = pytest.mark.dist
# started by the tests of equality and of divided teachers
ELSEWHERE = {"cpu", *STRATEGIES, *SHARDINGS}
HERE = {"single_gpu": (1, "one process"), "multi_gpu": (2, "DDP"), "multi_node": (2, "DDP")}


def test_every_configuration_is_started_by_a_test():
    folder = Path(__file__).resolve().parents[2] / "accelerate_configs"
    assert {path.stem for path in folder.glob("*.yaml")} == ELSEWHERE | set(HERE)


@pytest.mark.parametrize("config", [pytest.param("single_gpu", marks=pytest.mark.slow), "multi_gpu"])
def test_one_machine(launch, stages, tmp_path, config):
    num_processes, strategy = HERE[config]
    options = stages["general_distill"] | {"max_steps": 2, "output_dir": tmp_path / "run"}
    result = launch("general_distill", *flags(options), config=config, num_processes=num_processes)
    assert f"{num_processes} on cpu, {strategy}" in result.stdout


def test_two_machines(launch, stages, tmp_path):
    """One launcher for each machine, the same command but for its rank, as on a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = stages["general_distill"] | {"max_steps": 2, "output_dir": tmp_path / "run"}
    machines = [
        launch(
            "general_distill", *flags(options), config="multi_node", wait=False,
            launcher=("--machine_rank", str(rank), "--main_process_port", str(port)),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [machine.communicate(timeout=200)[0] for machine in machines]
    except subprocess.TimeoutExpired:
        for machine in machines:
            machine.kill()
        raise
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert "2 on cpu, DDP" in outputs[0] and "finished at step 2" in outputs[0]
    assert "2 on cpu" not in outputs[1]  # only the main process speaks
