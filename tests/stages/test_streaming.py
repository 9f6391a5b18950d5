"""general_distill --streaming: from raw text to a student, stopped, moved and with bad data."""

import gzip
import json
import re
import shutil

import pytest
from command_lines import flags

from tinybert_dist.config import UserError, parse
from tinybert_dist.data.corpus import prepare
from tinybert_dist.files import read_json, sha256_of
from tinybert_dist.models import load_tokenizer
from tinybert_dist.stages import general_distill

STEPS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, sentences):
    folder = tmp_path_factory.mktemp("corpus")
    documents = ["\n".join(sentences[i : i + 8]) for i in range(0, 400, 8)]
    (folder / "a.txt").write_text("\n\n".join(documents) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences[400:500]))
    return folder


def options(workspace, corpus, output_dir, **changes):
    wanted = {
        "streaming": True,
        "train_file_path": corpus,
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "output_dir": output_dir,
        "max_seq_len": 32,
        "mode": "line",
        "train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    } | changes
    return flags({name: value for name, value in wanted.items() if value is not None})


def distill(*arguments, **changes):
    return general_distill.run(parse(general_distill.GeneralDistillConfig, options(*arguments, **changes)))


@pytest.fixture(scope="module")
def undisturbed(workspace, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert distill(workspace, corpus, folder)["outcome"] == "finished"
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder):
    return read_json(next((folder / "checkpoints").glob(f"step-*{STEPS}")) / "state.json")


def losses(folder):
    return [{k: v for k, v in row.items() if k.startswith("loss/")} for row in metrics(folder)]


def test_nothing_is_prepared_and_the_student_learns(undisturbed):
    assert not (undisturbed / "tokens").exists()
    rows = metrics(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss/total"] < rows[0]["loss/total"]
    assert (undisturbed / "model.safetensors").is_file()


def test_stopping_after_every_step_gives_the_same_bits(workspace, corpus, undisturbed, tmp_path):
    """Dropout is on; the attempts take turns in their number of workers."""
    folder = tmp_path / "run"
    ends = [
        distill(workspace, corpus, folder, max_seconds=1e-6, num_workers=step % 3) for step in range(STEPS)
    ]
    assert [end["outcome"] for end in ends] == ["interrupted"] * (STEPS - 1) + ["finished"]
    for name in ("model.safetensors", "projections.safetensors"):
        assert sha256_of(folder / name) == sha256_of(undisturbed / name)
    assert losses(folder) == losses(undisturbed)


def test_steps_are_estimated_without_max_steps(workspace, corpus, tmp_path, capsys):
    """500 lines in steps of 50, twice; the estimate stands in the checkpoint."""
    changes = {"max_steps": None, "num_train_epochs": 2, "train_batch_size": 50, "logging_steps": 100}
    distill(workspace, corpus, tmp_path / "run", **changes)
    output = capsys.readouterr().out
    assert "estimated" in output
    step = read_json(tmp_path / "run" / "outcome.json")["step"]
    assert step == pytest.approx(2 * 500 / 50, abs=4)
    state = read_json(next((tmp_path / "run" / "checkpoints").glob(f"step-*{step}")) / "state.json")
    assert set(state["constants"]["rows_per_byte"]) == {".txt", ".jsonl"}
    assert sum(position[0] for position in state["position"]) > 0  # lanes are in later epochs


def test_a_prepared_corpus_is_not_streamed(workspace, tmp_path):
    tokens = tmp_path / "tokens"
    prepare(workspace / "corpus.txt", tokens, load_tokenizer(workspace / "teacher"), progress=False)
    with pytest.raises(UserError, match=r"tokens is prepared already .*leave --streaming out"):
        distill(workspace, tokens, tmp_path / "run")


def test_a_dry_run_tells_what_would_be_streamed(workspace, corpus, tmp_path, capsys):
    assert distill(workspace, corpus, tmp_path / "run", dry_run=True)["outcome"] == "dry_run"
    output = capsys.readouterr().out
    assert re.search(r"about 5\d\d \([\d,]+ tokens; estimated\), streamed from \d", output)
    assert re.search(r"loader alone +[\d.]+[kM] real tokens/s with one core", output)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["text", "name", "seed", "mode"])
def test_going_on_with_other_data_is_refused(workspace, corpus, tmp_path, change):
    folder, moved, changes = tmp_path / "run", tmp_path / "corpus", {}
    moved.mkdir()
    for file in corpus.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    distill(workspace, moved, folder, max_seconds=1e-6)
    if change == "text":
        (moved / "a.txt").write_bytes((moved / "a.txt").read_bytes().replace(b"the", b"eht", 1))
    elif change == "name":
        (moved / "a.txt").rename(moved / "c.txt")
    else:
        changes = {"seed": {"seed": 7}, "mode": {"mode": "pairs"}}[change]
    key = change if changes else "train_file_path"
    with pytest.raises(UserError, match=rf"holds another run \(.*{key}: .* there, .* now.*"):
        distill(workspace, moved, folder, **changes)


def test_going_on_with_a_copy_of_the_text(workspace, corpus, undisturbed, tmp_path):
    """As a job that was moved does, with the text on the disk of its machine."""
    folder = tmp_path / "run"
    distill(workspace, corpus, folder, max_seconds=1e-6)
    shutil.copytree(corpus, tmp_path / "scratch")  # keeps the times of the files
    assert distill(workspace, tmp_path / "scratch", folder)["outcome"] == "finished"
    assert sha256_of(folder / "model.safetensors") == sha256_of(undisturbed / "model.safetensors")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_named_or_counted(workspace, corpus, tmp_path, workers, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = (corpus / "a.txt").read_bytes().split(b"\n")
    lines[400] = b"caf\xe9"
    (folder / "a.txt").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"a\.txt:401: byte 0xe9.*--on_bad_record skip"):
        distill(workspace, folder, tmp_path / "run", num_workers=workers, max_steps=40)
    outcome = read_json(tmp_path / "run" / "outcome.json")
    assert outcome["outcome"] == "failed" and "a.txt:401" in outcome["reason"]
    distill(workspace, folder, tmp_path / "skip", num_workers=workers, on_bad_record="skip")
    assert metrics(tmp_path / "skip")[-1]["data/bad_records"] == 1
    assert "1 bad records passed over" in capsys.readouterr().out


# --- several processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(workspace, corpus, tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("two") / "run"
    arguments = {"gradient_accumulation_steps": 1, "num_workers": 1}
    result = launch("general_distill", *options(workspace, corpus, folder, **arguments))
    assert "2 on cpu, DDP" in result.stdout
    return folder


@pytest.mark.dist
def test_two_processes_compute_what_one_does(undisturbed, two_processes):
    """The same samples in the same micro-batches, and with them the same draws of dropout."""
    for one, two in zip(losses(undisturbed), losses(two_processes), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.dist
def test_each_record_is_read_by_one_process(corpus, two_processes):
    """Nobody is in a second epoch and all blocks are at hand: all records have been read, and once."""
    assert {lane[0] for lane in state(two_processes)["position"]} == {0}
    num_records = sum(len(file.read_text().splitlines()) for file in corpus.iterdir())
    assert metrics(two_processes)[-1]["data/records_read"] == num_records


@pytest.mark.dist
def test_going_on_with_two_processes_sees_the_same_samples(workspace, corpus, undisturbed, tmp_path, launch):
    """Stopped in the first epoch as one process without workers, gone on with as two with a worker each."""
    folder = tmp_path / "run"
    assert distill(workspace, corpus, folder, max_seconds=1e-6)["step"] == 1
    launch("general_distill", *options(workspace, corpus, folder, num_workers=1))
    for two, one in zip(losses(folder), losses(undisturbed), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    assert state(folder)["position"] == state(undisturbed)["position"]


@pytest.fixture(scope="module")
def stopped(workspace, corpus, tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    arguments = {"gradient_accumulation_steps": 1, "max_seconds": 1e-6}
    launch("general_distill", *options(workspace, corpus, folder, **arguments))
    assert read_json(folder / "outcome.json")["step"] == 1
    return folder


@pytest.mark.slow
@pytest.mark.dist
def test_stopped_and_gone_on_with_gives_the_same_bits(
    workspace, corpus, two_processes, stopped, tmp_path, launch
):
    folder = shutil.copytree(stopped, tmp_path / "run")
    arguments = {"gradient_accumulation_steps": 1, "num_workers": 2}
    launch("general_distill", *options(workspace, corpus, folder, **arguments))
    assert sha256_of(folder / "model.safetensors") == sha256_of(two_processes / "model.safetensors")


@pytest.mark.slow
@pytest.mark.dist
def test_going_on_with_one_process_sees_the_same_samples(workspace, corpus, two_processes, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    distill(workspace, corpus, folder, gradient_accumulation_steps=1)
    for one, two in zip(losses(folder), losses(two_processes), strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert state(folder)["position"] == state(two_processes)["position"]


@pytest.mark.slow
@pytest.mark.dist
def test_one_process_without_text_computes_along_and_hears_of_the_others_bad_record(
    workspace, tmp_path, launch
):
    lines = [f"line {i} of a short text".encode() for i in range(9000)]
    (tmp_path / "good.txt.gz").write_bytes(gzip.compress(b"\n".join(lines), 1))
    (tmp_path / "bad.txt.gz").write_bytes(gzip.compress(b"\n".join([*lines, b"caf\xe9"]), 1))
    changes = {"train_batch_size": 2000, "max_seq_len": 16, "max_steps": 6}
    distill(workspace, tmp_path / "good.txt.gz", tmp_path / "one", **changes)
    command = options(
        workspace, tmp_path / "bad.txt.gz", tmp_path / "two", gradient_accumulation_steps=1, **changes
    )
    result = launch("general_distill", *command, check=False, timeout_s=100)
    assert "uneven" in result.stdout
    # the bad one stands behind the first block, of 5,062 of 8,192 rows
    assert len(losses(tmp_path / "two")) == 2
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=False):
        assert two == pytest.approx(one, rel=1e-5)
    assert result.returncode != 0
    assert len(re.findall(r"^error: \S*bad\.txt\.gz:9001: byte 0xe9", result.stdout, re.MULTILINE)) == 2
    outcome = read_json(tmp_path / "two" / "outcome.json")
    assert (outcome["outcome"], outcome["resumable"]) == ("failed", False)
    assert "bad.txt.gz:9001" in outcome["reason"] and outcome["first_failing_process"] == 0


@pytest.mark.slow
@pytest.mark.dist
def test_sharded_weights_with_a_process_without_text(workspace, tmp_path, launch):
    """Under FSDP2 every forward is a collective: both must compute as many micro-batches."""
    text = "\n".join(f"line {i} of a short text" for i in range(400)) + "\n"
    (tmp_path / "corpus.txt.gz").write_bytes(gzip.compress(text.encode()))
    changes = {"train_batch_size": 100, "micro_batch_tokens": 200, "max_steps": 2}
    distill(workspace, tmp_path / "corpus.txt.gz", tmp_path / "one", **changes)
    changes["gradient_accumulation_steps"] = 1
    command = options(workspace, tmp_path / "corpus.txt.gz", tmp_path / "two", **changes)
    result = launch("general_distill", *command, config="fsdp2")
    assert "FSDP2" in result.stdout and "uneven" in result.stdout
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
