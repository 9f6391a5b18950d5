"""The benchmark under accelerate launch: what all processes do together."""

import pytest
from benchmark_runs import arguments, run

from tinybert_dist.files import read_json

pytestmark = pytest.mark.dist


@pytest.mark.slow
def test_two_processes_measure_the_work_of_both(workspace, launch, tmp_path):
    changes = {"train_file_path": workspace / "corpus.txt", "train_batch_size": 16}
    output = launch("benchmark", *arguments(workspace, output_dir=tmp_path / "two", **changes)).stdout
    two, one = read_json(tmp_path / "two" / "benchmark.json"), run(workspace, **changes)
    assert (two["processes"], two["strategy"]) == (2, "DDP")
    assert "2, DDP, float32" in output and output.count("where the time of a step goes") == 1
    for name in ("general", "step_1", "step_2", "teacher", "evaluate"):
        mine, alone = two["measured"][name], one["measured"][name]
        # the same steps, however many do them
        assert [mine[n] for n in ("tokens", "examples", "repeats")] == [
            alone[n] for n in ("tokens", "examples", "repeats")
        ]
        assert mine["flops_per_token"] == pytest.approx(alone["flops_per_token"])
        if name != "evaluate":
            assert mine["micro_batches"] == 2 * alone["micro_batches"] == 2
            assert mine["counters"]["collectives"] > 0 == alone["counters"]["collectives"]
            assert mine["gradients"]["all_reduce_s"] > 0 and mine["gradients"]["bytes"] > 0
            assert "gradients" not in alone
            assert two["where"][name]["sync"] > 0
    assert two["sweep"]["accumulation"]["finer_micro_batches"] == 8
    assert list((tmp_path / "two").iterdir()) == [tmp_path / "two" / "benchmark.json"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"])
def test_every_strategy_can_be_measured(workspace, launch, tmp_path, config):
    changes = {"train_file_path": workspace / "corpus.txt", "json": tmp_path / "figures.json"}
    launch("benchmark", *arguments(workspace, **changes), config=config)
    result = read_json(tmp_path / "figures.json")
    assert result["processes"] == 2 and result["strategy"] != "DDP"
    assert list(result["where"]) == ["general", "step_1", "step_2", "teacher"]
    for seconds in result["where"].values():
        assert all(seconds[phase] > 0 for phase in ("student", "backward", "optimizer"))
