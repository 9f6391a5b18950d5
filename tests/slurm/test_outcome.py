"""Whether a job that ended is done, goes back into the queue, or has failed. Needs no Slurm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "launch" / "slurm"
sys.path.insert(0, str(SCRIPTS))
import outcome  # noqa: E402

NOTHING = {".": {}, "pretrained": {}}


def run(kind, step, reason="", *, pretrained=None, resumable=None):
    """The state of a run folder."""
    record = {"outcome": kind, "step": step, "reason": reason, "first_failing_process": None}
    record["resumable"] = kind != "finished" if resumable is None else resumable
    return {".": record, "pretrained": pretrained or {}}


INTERRUPTED = run("interrupted", 40, "SIGUSR1")
RUNNING = run("running", 20)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_finished_is_done_whatever_the_launcher_says(code):
    assert outcome.decide(RUNNING, run("finished", 90), code=code)[:2] == ("done", 0)


def test_a_finished_run_that_is_refused_has_failed():
    """Another command on its folder."""
    finished = run("finished", 90)
    assert outcome.decide(finished, finished, code=2)[:2] == ("fail", 2)
    assert outcome.decide(finished, finished, code=0)[:2] == ("done", 0)


@pytest.mark.parametrize("code", [0, 1, 143])
def test_interrupted_goes_back_into_the_queue(code):
    for before in (NOTHING, RUNNING, run("interrupted", 30, "SIGUSR1")):
        assert outcome.decide(before, INTERRUPTED, code=code).action == "requeue"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ended": True}, "Slurm is ending"),
        ({"stop_file": True}, "file STOP"),
        ({"restarts": 20}, "MAX_RESTARTS"),
        ({"restarts": 1, "asked_after": 3}, "--signal"),
        ({"before": run("interrupted", 40, "SIGTERM")}, "no progress"),
        ({"before": INTERRUPTED, "code": 0}, "no progress"),  # not a file has changed
    ],
)
def test_interrupted_and_yet_not(changes, why):
    facts = {"before": RUNNING, "after": INTERRUPTED, "code": 0} | changes
    decision = outcome.decide(**facts)
    assert decision[:2] == ("fail", outcome.TRY_AGAIN) and why in decision.why
    assert decision.code != 0  # afterok must not start on half a model


def test_signalled_early_once_may_be_by_hand():
    decision = outcome.decide(NOTHING, INTERRUPTED, code=0, asked_after=3)
    assert decision.action == "requeue" and "as long as --time" in decision.why


def test_an_old_interruption_is_not_this_one():
    """The launcher fails before training has begun: again and again, if the old record counted."""
    assert outcome.decide(INTERRUPTED, INTERRUPTED, code=1)[:2] == ("fail", 1)


@pytest.mark.parametrize("code", [0, 1])
def test_failed_and_killed_are_no_good_end(code):
    nan = run("failed", 7, "step 7: loss is not finite", resumable=False)
    for after in (nan, RUNNING):
        decision = outcome.decide(NOTHING, after, code=code)
        assert (decision.action, decision.code) == ("fail", 1)
        assert ("goes on" in decision.why) == (after is RUNNING)


def test_pretraining_counts_until_the_run_itself_begins():
    early, late = run("interrupted", 5, "SIGUSR1")["."], run("interrupted", 9, "SIGUSR1")["."]
    first, second = {".": {}, "pretrained": early}, {".": {}, "pretrained": late}
    assert outcome.decide(NOTHING, first, code=0).action == "requeue"
    assert outcome.decide(first, second, code=0).action == "requeue"
    assert outcome.decide(second, second, code=0).action == "fail"
    finished = run("finished", 20)["."]
    begun = run("interrupted", 3, "SIGUSR1", pretrained=finished)
    assert outcome.decide(second, begun, code=0).action == "requeue"
    # died between the two
    assert outcome.decide(second, {".": {}, "pretrained": finished}, code=1)[:2] == ("fail", 1)


def pieces(number):
    """The state of a folder of prepare_corpus or augment."""
    return NOTHING | {"pieces": {"step": number}}


def test_a_stage_that_keeps_its_pieces_goes_back_into_the_queue():
    def decide(before, after, **facts):
        return outcome.decide(
            pieces(before), pieces(after), trains=False, **{"code": 0, "stopped": True} | facts
        )

    assert decide(2, 5)[:2] == ("requeue", outcome.TRY_AGAIN) and "5 pieces finished" in decide(2, 5).why
    assert decide(2, 5, stopped=False)[:2] == ("done", 0)
    assert decide(2, 5, code=1)[:2] == ("fail", 1)  # one node failed, the others were ended
    for changes, why in (
        ({"ended": True}, "Slurm is ending"),
        ({"restarts": 20}, "MAX_RESTARTS"),
        ({"restarts": 1, "asked_after": 3}, "--signal"),
    ):
        decision = decide(2, 5, **changes)
        assert decision[:2] == ("fail", outcome.TRY_AGAIN) and why in decision.why
    assert decide(5, 5)[:2] == ("fail", outcome.TRY_AGAIN) and "no progress" in decide(5, 5).why


def test_finished_pieces_are_counted_where_the_stages_leave_them(tmp_path):
    for file in (
        "part-0a/manifest.json",
        "part-0b/rows.arrow",
        ".train_aug.tsv.0a.blocks/3.json",
        "x/1.json",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert outcome.state(str(tmp_path)) == pieces(2)


@pytest.mark.parametrize("code", [0, 2])
def test_other_stages_are_what_their_exit_code_says(code):
    decision = outcome.decide(NOTHING, INTERRUPTED, code=code, trains=False)
    assert decision[:2] == ("fail" if code else "done", code)


def test_the_first_error_is_shown_with_the_end_of_its_log(tmp_path):
    logs = tmp_path / "logs"
    for node, local in ((0, 0), (0, 1), (1, 0), (1, 1)):
        file = logs / f"node-{node}" / "none_x" / "attempt_0" / str(local) / "stderr.log"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"line {i} of {node}.{local}\n" for i in range(50)))
    failed = run("failed", 3, "killed by SIGKILL")["."] | {"first_failing_process": 3}
    (tmp_path / "outcome.json").write_text(json.dumps(failed))
    told = outcome.first_error(str(tmp_path), str(logs), 2)
    assert "process 3 (node 1): killed by SIGKILL" in told
    assert "line 49 of 1.1" in told and "line 1 of 1.1" not in told and "of 0.0" not in told


def test_without_an_outcome_the_log_of_an_error_that_ended_first(tmp_path):
    for node, text in ((0, "Traceback: gone\n"), (1, "error: no such file\n"), (2, "all is well\n")):
        file = tmp_path / f"node-{node}" / "none_x" / "attempt_0" / "0" / "stderr.log"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        import os

        os.utime(file, (100 - node, 100 - node))
    told = outcome.first_error("", str(tmp_path), 1)
    assert "no such file" in told and "well" not in told


def test_the_answers_are_what_a_shell_reads(tmp_path):
    def ask(*arguments):
        command = [sys.executable, SCRIPTS / "outcome.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = ask("state", tmp_path)
    (tmp_path / "outcome.json").write_text(json.dumps(INTERRUPTED["."]))
    arguments = ("decide", tmp_path, "--before", before, "--code", 0, "--trains", "--max-restarts", 3)
    assert ask(*arguments).startswith("requeue 75 interrupted at step 40 (SIGUSR1); back")
    assert ask(*arguments, "--restarts", 3).startswith("fail 75 ")
    assert ask(*arguments, "--ended").startswith("fail 75 ")
    (tmp_path / "STOP").touch()
    assert "STOP" in ask(*arguments)


@pytest.mark.parametrize(
    "script", sorted(p.name for p in SCRIPTS.iterdir() if p.suffix != ".py" and p.is_file())
)
def test_scripts_are_sound_shell(script):
    """No Slurm needed to see a slip of the pen."""
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


def test_the_job_script_asks_for_what_its_rules_need():
    text = (SCRIPTS / "stage.sbatch").read_text()
    for line in ("--signal=B:USR1@", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in text
