"""The progress line."""

import io

import pytest

from tinybert_dist.training.progress import ProgressLine, progress_text, readable_count, readable_time

VALUES = {
    "loss/total": 9.5, "loss/attention": 7.123456, "loss/hidden": 2.0, "learning_rate": 5e-5,
    "grad_norm": 0.8,
    "throughput/tokens_per_s": 12345.0, "throughput/padding_pct": 3.2, "throughput/data_wait_pct": 0.4,
    "throughput/mfu_pct": 41.3, "throughput/memory_gib": 1.25,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tinybert_dist.training.progress.time.monotonic", lambda: now[0])
    return now


def test_plain_lines_are_rare_and_the_last_is_shown(clock):
    stream = io.StringIO()
    line = ProgressLine(20, is_main=True, stream=stream, every_s=10)
    for step in range(1, 21):
        clock[0] += 3
        line.update(step, VALUES)
    line.finish()
    shown = stream.getvalue().splitlines()
    assert [text.split()[1] for text in shown] == ["1/20", "5/20", "9/20", "13/20", "17/20", "20/20"]
    assert "\r" not in stream.getvalue()
    assert shown[1] == (
        "step 5/20  loss 9.5  att 7.123  hid 2  lr 5.00e-05  norm 0.8  "
        "12.3k tok/s  pad 3%  wait 0%  MFU 41%  1.2 GiB  ETA 45s"
    )


def test_a_score_is_never_left_out(clock):
    stream = io.StringIO()
    line = ProgressLine(20, is_main=True, stream=stream, every_s=1000)
    for step in range(1, 20):
        line.update(step, {"loss/total": 1.0} | ({"eval/score": 0.5} if step % 8 == 0 else {}))
    assert [text.split()[1] for text in stream.getvalue().splitlines()] == ["1/20", "8/20", "16/20"]
    assert "score 0.5" in stream.getvalue()


def test_a_loader_that_cannot_keep_up_is_said_so():
    assert progress_text({"throughput/data_wait_pct": 43.2}) == "wait 43% (loader-bound: raise --num_workers)"
    assert progress_text({"throughput/data_wait_pct": 19.0}) == "wait 19%"


def test_terminal_line_is_rewritten_in_place(clock):
    stream = Terminal()
    line = ProgressLine(2, is_main=True, stream=stream)
    clock[0] += 1
    line.update(1, {"loss/total": 123.4})
    clock[0] += 1
    line.update(2, {"loss/total": 1.0})
    line.finish()
    first, second = stream.getvalue().strip("\r\n").split("\r")
    assert len(second) >= len(first) and second.startswith("step 2/2  loss 1  ETA 0s")
    assert stream.getvalue().count("\n") == 1


def test_progress_is_silent_on_other_ranks_and_eta_counts_from_the_resume(clock):
    stream = io.StringIO()
    other = ProgressLine(2, is_main=False, stream=stream)
    other.update(2, VALUES)
    other.finish()
    assert stream.getvalue() == ""
    resumed = ProgressLine(1000, is_main=True, stream=stream, start_step=900)
    clock[0] += 50
    resumed.update(950, {})
    assert stream.getvalue().endswith("ETA 50s\n")


def test_units():
    assert [readable_count(v) for v in (0.5, 999, 12345, 2.5e6, 999999, 3e12)] == [
        "0.5",
        "999",
        "12.3k",
        "2.5M",
        "1M",
        "3T",
    ]
    times = [readable_time(s) for s in (5, 192, 3600, 93784, float("nan"))]
    assert times == ["5s", "3m12s", "1h00m", "1d02h", "?"]
    assert "pad 51%" in progress_text({"throughput/padding_pct": 51.0})
