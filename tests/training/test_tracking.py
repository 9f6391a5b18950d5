import contextlib
import getpass
import json
import os
import socket
import sys

import matplotlib.pyplot as plt
import pytest
import torch
import wandb_files

from tinybert_dist.config import UserError
from tinybert_dist.lineage import lineage_of
from tinybert_dist.training import wandb_run
from tinybert_dist.training.tracking import Tracker, TrackingOptions, keep_rows_until
from tinybert_dist.training.wandb_run import resolve_mode


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)


def make(folder, is_main=True, config=None, resume_step=0, **options):
    """A tracker of a training run."""
    options = TrackingOptions(**options)
    config = config or {"learning_rate": 3e-5}
    return Tracker(options, "task_distill", folder, is_main, config, resume_step=resume_step)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(path):
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in wandb_files.history(path)]


def test_offline_run_holds_what_was_logged(tmp_path):
    tracker = make(tmp_path, run_group="night")
    expected = []
    for step in range(10, 60, 10):
        values = {"loss/total": 1 / step, "loss/hidden/layer_1": 0.5, "eval/dev/accuracy": step / 100}
        tracker.log(step, values)
        expected.append({"step": step, **values})
    tracker.summary({"score": torch.tensor(0.5)})
    tracker.finish(0)
    tracker.finish(0)
    assert rows(tmp_path) == expected
    (path,) = wandb_files.run_files(tmp_path)
    assert path.is_relative_to(tmp_path / "wandb")
    assert logged(path) == expected
    assert [row["_step"] for row in wandb_files.history(path)] == [10, 20, 30, 40, 50]
    run = wandb_files.runs(path)[0]
    assert (run.job_type, run.run_group, run.run_id) == ("task_distill", "night", tracker.run_id)
    assert wandb_files.config(path)["learning_rate"] == 3e-5
    assert wandb_files.summary(path)["score"] == 0.5
    stepped = {
        metric.glob_name or metric.name
        for metric in wandb_files.metrics(path)
        if metric.step_metric == "step"
    }
    assert {"loss/*", "eval/*", "throughput/*"} <= stepped


def test_resume_continues_the_same_run_and_keeps_one_row_per_step(tmp_path):
    first = make(tmp_path)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss/total": float(step)})
    first.finish(1)
    second = make(tmp_path, resume_step=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    for step in (3, 4, 5):
        second.log(step, {"loss/total": 10.0 + step})
    second.finish()
    assert second.run_id == first.run_id
    assert rows(tmp_path) == [
        {"step": s, "loss/total": v} for s, v in ((1, 1), (2, 2), (3, 13), (4, 14), (5, 15))
    ]
    paths = wandb_files.run_files(tmp_path)
    assert {wandb_files.runs(path)[0].run_id for path in paths} == {first.run_id}
    resumed = [row for path in paths for row in logged(path) if row["loss/total"] > 10]
    assert [row["step"] for row in resumed] == [3, 4, 5]


def test_other_ranks_write_nothing(tmp_path):
    tracker = make(tmp_path / "run", is_main=False, wandb_mode="offline")
    tracker.log(1, {"loss/total": 1.0})
    tracker.log_table("t", ["a"], [[1]])
    tracker.summary({"a": 1})
    assert tracker.run_id is None
    tracker.finish(0)
    assert list(tmp_path.iterdir()) == []


def test_disabled_writes_metrics_but_no_wandb(tmp_path):
    tracker = make(tmp_path, wandb_mode="disabled")
    tracker.log(1, {"loss/total": torch.tensor(2.0)})
    assert rows(tmp_path) == [{"step": 1, "loss/total": 2.0}]  # readable before finish
    tracker.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert tracker.run_id is None


def test_the_environment_can_switch_wandb_off(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Tracker(TrackingOptions(), "evaluate", tmp_path / "run", True, {}) as tracker:
        tracker.log(0, {"eval/score": 1.0})
        tracker.log_table("t", ["a"], [[1]])
        assert tracker.place == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_failed_says_so_and_the_next_start_continues_it(tmp_path):
    """Also without any checkpoint: the folder knows its run."""
    options, ids = TrackingOptions(wandb_mode="offline"), []
    for fails in (True, False):
        with (
            contextlib.suppress(RuntimeError),
            Tracker(options, "task_distill", tmp_path, True, {}, resume_step=0) as tracker,
        ):
            ids.append(tracker.run_id)
            tracker.log(1, {"loss/total": 1.0})
            if fails:
                raise RuntimeError
    assert ids[0] == ids[1]
    with Tracker(options, "evaluate", tmp_path, True, {}) as tracker:
        assert tracker.run_id != ids[0]  # another stage in the same folder
    ends = {
        path: [r.exit.exit_code for r in wandb_files.records(path) if r.WhichOneof("record_type") == "exit"]
        for path in wandb_files.run_files(tmp_path)
    }
    assert sorted(code for codes in ends.values() for code in codes) == [0, 0, 1]


def test_project_and_group_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "scratch"))
    with Tracker(TrackingOptions(wandb_mode="offline"), "evaluate", tmp_path / "run", True, {}):
        pass
    (path,) = wandb_files.run_files(tmp_path)
    run = wandb_files.runs(path)[0]
    assert (run.project, run.run_group) == ("ours", "sweep") and path.is_relative_to(tmp_path / "scratch")
    named = TrackingOptions(wandb_mode="offline", wandb_project="mine", run_group="night")
    with Tracker(named, "evaluate", tmp_path / "other", True, {}):
        pass
    both = {wandb_files.runs(file)[0].display_name: file for file in wandb_files.run_files(tmp_path)}
    run = wandb_files.runs(both["evaluate-other"])[0]
    assert (run.project, run.run_group) == ("mine", "night")


def test_no_text_leaves_when_none_is_asked_for(tmp_path):
    (tmp_path / "predictions.tsv").write_text(
        "line\tlabel\tprediction\tp(a)\tp(b)\ttext\n2\ta\ta\t0.9\t0.1\tsecret\n"
    )
    for samples, shown in ((0, False), (1, True)):
        options = TrackingOptions(wandb_mode="offline", wandb_samples=samples)
        with Tracker(options, "evaluate", tmp_path / str(samples), True, {}) as tracker:
            tracker.log(0, {"eval/score": 1.0})
            tracker.log_predictions(tmp_path)
        (path,) = wandb_files.run_files(tmp_path / str(samples))
        assert (
            any(key.startswith("predictions/") for row in wandb_files.history(path) for key in row) == shown
        )
        assert bool(list((tmp_path / str(samples)).rglob("*.table.json"))) == shown


def test_models_stay_here_when_asked_to(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with Tracker(
        TrackingOptions(wandb_mode="offline", wandb_log_model="none"), "s", tmp_path, True, {}
    ) as tracker:
        tracker.log_model(tmp_path)
    (path,) = wandb_files.run_files(tmp_path)
    assert not [r for r in wandb_files.records(path) if r.WhichOneof("record_type") == "artifact"]
    assert lineage_of(tmp_path)["wandb"]["run_id"] == tracker.run_id
    (tmp_path / "model.safetensors").write_bytes(b"others")  # no longer what that run made
    assert set(lineage_of(tmp_path)) == {"name", "weights_sha256"}


def test_not_a_number_stays_readable_json(tmp_path):
    tracker = make(tmp_path, wandb_mode="disabled")
    tracker.log(1, {"loss/total": float("nan"), "grad_norm": float("inf")})
    tracker.finish()
    assert rows(tmp_path) == [{"step": 1, "loss/total": None, "grad_norm": None}]


def test_metrics_of_a_crash_are_mended_and_foreign_files_refused(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    keep_rows_until(file, 9)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    file.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a row of metrics \('hello'\)"):
        keep_rows_until(file, 9)
    assert "hello" in file.read_text()
    file.write_text('{"step": 1}\n')
    keep_rows_until(file, 0)
    assert file.read_text() == ""


def test_nothing_of_the_machine_leaves_it(tmp_path, monkeypatch):
    """The transaction log and files/ are what a sync uploads; logs/ stays, and may only hold its own folder's
    path.
    """
    canary = "canary-5f1c2"
    monkeypatch.setenv("WANDB_API_KEY", canary + "0" * 30)
    monkeypatch.setenv("MY_SECRET_TOKEN", canary)
    work = tmp_path / "private-place"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["train", f"--password={canary}"])
    monkeypatch.setattr(socket, "gethostname", lambda: "unmistakable-host")
    monkeypatch.setenv("LOGNAME", "unmistakable-user")
    assert getpass.getuser() == "unmistakable-user"
    tracker = make(work / "run", wandb_mode="offline")
    tracker.log(1, {"loss/total": 1.0})
    tracker.finish()
    names = [socket.gethostname(), getpass.getuser(), canary, sys.executable]
    uploaded = wandb_files.run_files(work) + [f for f in work.rglob("files/**/*") if f.is_file()]
    assert [path.suffix for path in uploaded] == [".wandb"]  # no metadata, no requirements, no console text
    texts = {}
    for path in wandb_files.run_files(work):
        # as text for short names, which may stand in raw bytes by chance
        texts[path] = path.read_bytes() + "\n".join(map(str, wandb_files.records(path))).encode()
        assert wandb_files.runs(path)[0].host == "hidden"
    for path, text in texts.items():
        for name in [*names, str(work), str(tmp_path)]:
            assert name.encode() not in text, (name, path)
        assert f'"{os.uname().nodename}"'.encode() not in text
    local = [f for f in work.rglob("*") if f.is_file()]
    assert any(f.suffix == ".log" for f in local)
    for path in local:
        assert canary.encode() not in path.read_bytes(), path


def test_mode_is_chosen_by_key_and_environment(monkeypatch):
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert resolve_mode("auto") == "online"
    assert resolve_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match=r"WANDB_MODE='sometimes': allowed are online"):
        resolve_mode("auto")
    with pytest.raises(UserError, match="allowed are auto, online, offline, disabled"):
        resolve_mode("on")


def test_online_without_network_falls_back_to_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 1)
    tracker = make(tmp_path, wandb_mode="online")
    tracker.log(7, {"loss/total": 1.0})
    tracker.finish()
    assert "logging offline instead" in caplog.text
    assert [row["step"] for path in wandb_files.run_files(tmp_path) for row in logged(path)] == [7]


def test_tables_and_pictures_reach_the_run(tmp_path):
    picture = tmp_path / "curves.png"
    plt.figure(figsize=(1, 1)).savefig(picture)
    tracker = make(tmp_path / "run")
    tracker.log(5, {"loss/total": 1.0})
    tracker.log_table("wrong", ["text", "label"], [["so so", 1]])
    tracker.log_image(picture)
    tracker.log_table("right", ["text", "label"], [["fine", 1]])
    tracker.log(6, {"loss/total": 0.5})
    tracker.finish()
    (path,) = wandb_files.run_files(tmp_path)
    merged = {key for row in wandb_files.history(path) for key in row}
    assert any(key.startswith("wrong") for key in merged) and any(key.startswith("curves") for key in merged)
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 6]
    assert [(row["_step"], row["loss/total"]) for row in wandb_files.history(path)] == [(5, 1.0), (6, 0.5)]
    assert list((tmp_path / "run").rglob("media/images/*.png"))
