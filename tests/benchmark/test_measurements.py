"""Each kind of measurement against what is known otherwise: row lengths, torch's counter, the clock."""

import mmap
import time

import numpy as np
import pytest
import torch
from benchmark_runs import options
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tinybert_dist.benchmark.clock import Clock, PeakMemory
from tinybert_dist.benchmark.floor import step_flops, teacher_flops
from tinybert_dist.benchmark.measure import Work, measure, repeats_within, take_turns
from tinybert_dist.benchmark.peak import matrix_rates
from tinybert_dist.benchmark.phases import PHASES, Phases, seconds_by_phase
from tinybert_dist.benchmark.steps import Evaluation, Steps, TeacherForwards, loop_of
from tinybert_dist.benchmark.subject import Subject
from tinybert_dist.data.order import Order
from tinybert_dist.training.heartbeat import beat, progress


def steps_of(workspace, accelerator, stage="general", **changes):
    subject = Subject(options(workspace, train_file_path=workspace / "corpus.txt", **changes), accelerator)
    loop = loop_of(subject.job(stage))
    return loop, Steps(loop)


def rows_of_step(loop, step):
    order = Order(len(loop.job.dataset), loop.options.train_batch_size, loop.options.seed)
    return loop.job.dataset.lengths_of(order.rows(step))


@pytest.mark.parametrize("stage", ["general", "step_2"])
@pytest.mark.parametrize("layout", ["packed", "padded", "fixed"])
def test_tokens_are_the_lengths_of_the_rows(workspace, accelerator, stage, layout):
    loop, steps = steps_of(workspace, accelerator, stage, layout=layout, gradient_accumulation_steps=2)
    for step in range(3):
        lengths = rows_of_step(loop, step)
        work = steps()
        assert (work.tokens, work.examples) == (lengths.sum(), 8)
        assert work.pairs == (lengths.astype(np.int64) ** 2).sum()
        assert work.micro_batches == (4 if layout == "padded" else 2)
        if layout == "padded":
            assert work.tokens < work.padded_tokens < 8 * 32
        else:
            assert work.padded_tokens == (work.tokens if layout == "packed" else 8 * 32)
    assert loop.step == 3


def test_an_evaluation_works_on_every_row(workspace, accelerator):
    subject = Subject(options(workspace, train_file_path=workspace / "corpus.txt"), accelerator)
    model = subject.model(subject.student_config, with_head=True)
    collate = subject.collate
    model.set_attn_implementation(subject.teacher().model.config._attn_implementation)
    work = Evaluation(model, subject.task, collate, accelerator, 512)()
    assert (work.examples, work.tokens) == (len(subject.task), subject.task.num_tokens)


@pytest.fixture
def rows_of_one_length(workspace, tmp_path):
    """Text whose rows are equally long: the counter counts attention as it is computed, padding included."""
    (tmp_path / "equal.txt").write_text("the the the the the the the the the the\n" * 64)
    return tmp_path / "equal.txt"


@pytest.mark.parametrize("stage", ["general", "step_1", "step_2", "teacher"])
def test_the_floor_of_a_step_is_what_torch_counts(workspace, accelerator, rows_of_one_length, stage):
    # without the attention loss: its products are no part of the floor
    changes = {"attention_weight": 0, "train_file_path": rows_of_one_length, "train_batch_size": 32}
    subject = Subject(options(workspace, **changes), accelerator)
    loop = loop_of(subject.job(stage))
    steps = Steps(loop)
    steps()
    # the counter has no formula for some fused kernels
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work = steps()
    assert work.pairs == work.tokens**2 / work.examples
    floor = step_flops(loop.job.module, loop.job.targets, work)
    # poolers nobody needs are computed once a micro-batch
    assert floor <= counter.get_total_flops() * 1.0001
    assert floor == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_floor_of_the_teacher_is_what_torch_counts(workspace, accelerator, rows_of_one_length):
    # the map looks at layers 1 and 2 of 4: the others are not computed
    subject = Subject(
        options(workspace, train_file_path=rows_of_one_length, train_batch_size=32, layer_map="bottom"),
        accelerator,
    )
    job = subject.job("general")
    forwards = TeacherForwards(job.targets, accelerator, loop_of(job).feed.shares(0, 9))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work = forwards()
    assert teacher_flops(job.targets, work) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert job.targets.model.config.num_hidden_layers == 2


def test_phases_add_up_to_the_step(workspace, accelerator):
    loop, steps = steps_of(workspace, accelerator, gradient_accumulation_steps=2, train_batch_size=16)
    steps()
    clock = Clock(accelerator.device)
    seconds = seconds_by_phase(lambda: clock.run(steps), loop.trained.live.model.base_model, accelerator, 4)
    assert list(seconds) == list(PHASES.values()) and all(s > 0 for s in seconds.values())
    assert sum(seconds.values()) == pytest.approx(sum(clock.seconds()) / 4, rel=0.05)
    assert progress.listener is None
    hooks = loop.trained.live.model.base_model
    assert not hooks._forward_hooks and not hooks._forward_pre_hooks


def test_time_is_put_down_to_the_phase_it_passes_in():
    phases, model = Phases(torch.device("cpu")), torch.nn.Identity()
    with phases.heard(model):
        beat("fetch")
        time.sleep(0.02)
        beat("forward")
        time.sleep(0.04)
        model(torch.zeros(1))
        time.sleep(0.06)
        beat("log")  # not a phase of a step: goes on as losses
        time.sleep(0.02)
        beat("backward")
    beat("optimize")  # nobody listens any more
    time.sleep(0.02)
    expected = {"data": 0.02, "teacher": 0.04, "loss": 0.08}
    for phase, seconds in phases.seconds.items():
        assert expected.get(phase, 0) <= seconds < expected.get(phase, 0) + 0.5
        assert phase in expected or seconds < 0.01


def test_a_phase_that_fails_leaves_no_listener():
    with pytest.raises(ValueError), Phases(torch.device("cpu")).heard(torch.nn.Identity()):
        raise ValueError
    assert progress.listener is None


def test_the_clock_and_the_rates_of_what_it_timed(accelerator):
    done = []

    def unit():
        done.append(1)
        time.sleep(0.01 * len(done))
        return Work(tokens=2.0 * len(done), padded_tokens=4.0 * len(done))

    result = take_turns({"it": unit}, accelerator, 3)["it"]
    assert [w.tokens for w in result.work] == [2, 4, 6] and result.total.padded_tokens == 24
    assert all(s >= 0.01 * (i + 1) for i, s in enumerate(result.seconds))
    assert 0 < result.per_second("tokens") <= 200
    assert result.per_second("padded_tokens") == 2 * result.per_second("tokens")
    assert sum(result.cpu_seconds) < sum(result.seconds)  # sleeping is no computing


def test_units_take_turns(accelerator):
    order = []
    units = {name: lambda name=name: (order.append(name), Work())[1] for name in "ab"}
    take_turns(units, accelerator, 3)
    assert order == list("ababab")


def test_how_often_is_told_by_the_time_there_is(accelerator):
    assert repeats_within(accelerator, 0.5, 5.0) == 10
    assert repeats_within(accelerator, 100.0, 5.0) == 3
    assert repeats_within(accelerator, 1e-9, 5.0) == 500
    calls = []
    measure(lambda: (calls.append(1), Work())[1], accelerator, 0, warm_ups=4)
    assert len(calls) == 4 + 3


def test_memory_is_the_most_there_was_since(accelerator):
    first = PeakMemory(accelerator.device)
    start = first.bytes()
    with mmap.mmap(-1, 64 << 20) as held:  # what tensors free, the heap may keep
        held.write(bytes(64 << 20))
    peak = first.bytes()
    assert peak >= start + (56 << 20)
    # what was given back is not the next one's
    assert PeakMemory(accelerator.device).bytes() <= peak - (56 << 20)


def test_the_peak_is_the_best_of_all_shapes(workspace, accelerator):
    config = Subject(options(workspace), accelerator).teacher_config
    for rates in matrix_rates(accelerator, config, 512, 0.05).values():
        sizes = {s["name"]: (s["rows"], s["inner"], s["columns"]) for s in rates["shapes"]}
        assert sizes == {
            "attention": (512, 48, 48),
            "up": (512, 48, 96),
            "down": (512, 96, 48),
            "square": (1024,) * 3,
        }
        assert all(0 < s["median"] <= s["best"] <= rates["best"] for s in rates["shapes"])


def test_a_rate_is_that_of_the_product_by_hand(workspace, accelerator):
    config = Subject(options(workspace), accelerator).teacher_config
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(left, right)
    since = time.perf_counter()
    torch.mm(left, right)
    by_hand = 2 * 1024**3 / (time.perf_counter() - since)
    square = matrix_rates(accelerator, config, 64, 0.2)["no"]["shapes"][-1]
    assert by_hand / 10 < square["best"] < by_hand * 10  # a busy machine
