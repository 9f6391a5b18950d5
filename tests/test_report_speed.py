"""How speed is measured: who is timed when, at which sizes, for how long."""

import time

import pytest
import torch

from tinybert_dist.config import UserError
from tinybert_dist.report import speed


def runner(name, calls, seconds=0.0):
    def bind(ids):
        def call():
            time.sleep(seconds)
            calls.append((name, tuple(ids.shape)))

        return call

    return bind


def test_models_take_turns_at_every_size():
    calls = []
    runners = {name: runner(name, calls) for name in ("teacher", "student")}
    options = speed.SpeedOptions(length_tokens=[16, 8], batch_size=[4, 1], repeats=3)
    result = speed.measure_speed(runners, options, lengths=[8, 16], vocab_size=100)
    sizes = [(1, 8), (4, 8), (1, 16), (4, 16)]
    warm_up = ["teacher"] * 2 + ["student"] * 2
    turns = [calls[i : i + 10] for i in range(0, 40, 10)]
    for size, turn in zip(sizes, turns, strict=True):
        assert {called for _, called in turn} == {size}
        names = [name for name, _ in turn]
        assert names[:4] == warm_up
        assert all({*names[i : i + 2]} == {*runners} for i in (4, 6, 8)), "each once in a repeat"
    for entries in result.values():
        assert [(e["batch_size"], e["length_tokens"]) for e in entries] == sizes
        assert all(e["repeats"] == 3 for e in entries)


def test_none_always_comes_behind_the_same_one():
    calls = []
    named = {name: runner(name, calls)(torch.zeros(1)) for name in "abc"}
    speed.take_turns(named, 30, 60)
    order = [name for name, _ in calls[6:]]
    assert len({order[i - 1] for i in range(1, 90) if order[i] == "b"} - {"b"}) == 2


def test_a_slow_model_is_timed_three_times_at_least():
    calls = []
    runners = {"slow": runner("slow", calls, 0.02), "quick": runner("quick", calls)}
    options = speed.SpeedOptions(batch_size=[1], repeats=1000, measure_s=0.0)
    result = speed.measure_speed(runners, options, lengths=[8], vocab_size=100)
    assert result["slow"][0]["repeats"] == result["quick"][0]["repeats"] == 3
    assert result["slow"][0]["latency_ms"]["p50"] >= 20
    assert result["slow"][0]["throughput_per_s"] <= 50
    calls.clear()
    speed.measure_speed(
        runners, speed.SpeedOptions(batch_size=[1], repeats=5, measure_s=60), lengths=[8], vocab_size=9
    )
    assert len(calls) == 2 * (2 + 5), "no more than asked for, however much time is left"


def test_quantiles_and_throughput_are_those_of_the_seconds(monkeypatch):
    monkeypatch.setattr(
        speed, "take_turns", lambda calls, *rest: {name: [0.3, 0.1, 0.2, 0.9, 0.2] for name in calls}
    )
    options = speed.SpeedOptions(batch_size=[4])
    (entry,) = speed.measure_speed({"m": runner("m", [])}, options, lengths=[8], vocab_size=9)["m"]
    assert entry["latency_ms"] == {"p50": 200.0, "p95": 900.0} and entry["throughput_per_s"] == 20.0
    assert speed.quantile(list(range(101)), 0.95) == 95


def test_lengths_over_the_positions_are_left_out_and_named(capsys):
    options = speed.SpeedOptions(length_tokens=[128, 32, 32, 512])
    assert speed.lengths_within(options, 512) == [32, 128, 512] and capsys.readouterr().out == ""
    assert speed.lengths_within(options, 64) == [32]
    assert "64 positions here, so none is timed at 128 512 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="--length_tokens 32 128 512: the models have 16 positions"):
        speed.lengths_within(options, 16)


def test_a_torch_model_is_timed_in_evaluation_mode_without_gradients(workspace):
    from tinybert_dist.models import load_classifier

    model = load_classifier(workspace / "teacher").train()
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append((module.training, output.logits)))
    speed.of_torch(model)(torch.ones(3, 5, dtype=torch.long))()
    (training, logits), *_ = seen
    assert not training and not logits.requires_grad and logits.shape == (3, 2)
