"""Nothing gets slower by accident: what a step makes the machine do is as recorded."""

import json

import pytest
from counters_record import CONFIGS, RECORD, differences, measure

pytestmark = pytest.mark.dist
IN_EVERY_RUN = ("cpu", "cpu_2_processes")
MICRO_BATCHES = {"general": 1, "general, 4 micro-batches": 4, "step 1": 1, "step 2": 0, "fine-tuning": 0}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """counted(config): measured once."""
    known = {}

    def of(config):
        if config not in known:
            known[config] = measure(config, tmp_path_factory.mktemp(config))
        return known[config]

    return of


@pytest.mark.parametrize(
    "config",
    [pytest.param(c, marks=() if c in IN_EVERY_RUN else pytest.mark.slow) for c in CONFIGS],
)
def test_a_step_does_what_is_recorded(counted, config):
    recorded = json.loads(RECORD.read_text())[config]
    assert set(recorded) == set(CONFIGS[config])
    lines = differences(counted(config), recorded, config)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("config", IN_EVERY_RUN)
def test_the_host_waits_once_in_a_step(counted, config):
    assert {name: c["host_reads"] for name, c in counted(config).items()} == dict.fromkeys(CONFIGS[config], 1)


@pytest.mark.parametrize("config", IN_EVERY_RUN)
def test_the_teacher_runs_once_for_a_micro_batch_and_never_for_kept_logits(counted, config):
    assert {name: c["teacher_forwards"] for name, c in counted(config).items()} == MICRO_BATCHES


def test_nothing_is_padded(counted):
    assert all(c["padded_tokens"] == c["tokens"] > 0 for c in counted("cpu").values())


def test_gradients_meet_in_the_last_micro_batch_alone(counted):
    """Two small reductions, and one bucket of gradients, however many micro-batches a step has."""
    one, four = (counted("cpu_2_processes")[name] for name in ("general", "general, 4 micro-batches"))
    assert one["collectives"] == four["collectives"] == 3
    assert one["collective_bytes"] == four["collective_bytes"]
    assert {c["collectives"] for c in counted("cpu").values()} == {0}
