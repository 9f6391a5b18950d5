import gzip
import itertools
import os
import shutil
import subprocess
import sys
import time

import fsspec
import pytest
import wandb_files

from tinybert_dist.data import corpus
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.stages import prepare_corpus


@pytest.fixture
def inputs(shared_data, tmp_path):
    """A teacher folder with nothing but the vocabulary, and the first lines of a real corpus."""
    (tmp_path / "teacher").mkdir()
    shutil.copy(shared_data / "vocab" / "bert-base-uncased" / "vocab.txt", tmp_path / "teacher")
    with gzip.open(
        shared_data / "corpus" / "en" / "wikinews_en.sent.txt.gz", "rt", encoding="utf-8"
    ) as lines:
        (tmp_path / "corpus.txt").write_text("".join(itertools.islice(lines, 2000)), encoding="utf-8")
    return tmp_path


def arguments(folder, *more):
    files = ["--train_file_path", f"{folder}/corpus.txt", "--output_dir", f"{folder}/out"]
    return [*files, "--teacher_model", f"{folder}/teacher", *more]


def test_the_reference_flags_prepare_a_corpus_and_a_second_run_nothing(inputs, capsys):
    summary = prepare_corpus.main(arguments(inputs, "--max_seq_len", "64", "--do_lower_case"))
    dataset = TokenDataset.open(inputs / "out", verify=True)
    assert dataset.lengths.max() <= 64 and len(dataset) == summary["rows"] > 500
    assert dataset.num_tokens == summary["tokens"] and dataset.header["max_seq_length"] == 64
    out = capsys.readouterr().out
    assert "1 files" in out and "rows of up to 64 tokens (pairs)" in out and "30522 pieces" in out
    assert f"{summary['rows']:,} rows" in out and "of the bare tokenizer" in out
    again = prepare_corpus.main(arguments(inputs, "--max_seq_length", "64", "--do_lower_case"))
    assert again["text_tokens_tokenized"] == 0 and "nothing tokenised" in capsys.readouterr().out


def test_line_mode_is_one_row_per_line_and_tells_of_the_cut(inputs, capsys):
    summary = prepare_corpus.main(arguments(inputs, "--mode", "line", "--max_seq_length", "32"))
    assert summary["rows"] == summary["sentences"] and summary["cut_tokens"] > 0
    assert f"{summary['cut_tokens']:,} tokens cut" in capsys.readouterr().out
    dataset = TokenDataset.open(inputs / "out")
    assert all(sample.segment_b == len(sample.input_ids) for sample in dataset.fetch(range(100)))


def test_a_dry_run_writes_nothing(inputs, capsys):
    prepare_corpus.main(arguments(inputs, "--dry_run"))
    assert not (inputs / "out").exists() and "1 of 1 files would be" in capsys.readouterr().out


def test_skipped_records_are_in_the_summary_line(inputs, capsys):
    with open(inputs / "corpus.txt", "ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(SystemExit, match="2"):
        prepare_corpus.main(arguments(inputs))
    error = capsys.readouterr().err
    assert "corpus.txt:2001: byte 0xff" in error and "--on_bad_record skip" in error
    prepare_corpus.main(arguments(inputs, "--on_bad_record", "skip"))
    assert "1 bad records passed over" in capsys.readouterr().out


def test_no_tokenizer_and_no_text_are_readable_errors(inputs, capsys):
    for argv, message in [
        (["--train_file_path", str(inputs), "--output_dir", "x"], "give --teacher_model"),
        (arguments(inputs, "--train_file_path", "absent.txt"), "absent.txt: no such file"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            prepare_corpus.main(argv)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("variables", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_the_launchers_variables_give_the_share(inputs, monkeypatch, variables, capsys):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 50_000)
    for index in (1, 0):
        for name, value in zip(variables, (index, 2), strict=True):
            monkeypatch.setenv(name, str(value))
        summary = prepare_corpus.main(arguments(inputs))
        assert ("missing" in summary) == (index == 1) and 1 <= summary["pieces_tokenized"] < summary["pieces"]
    out = capsys.readouterr().out
    assert "share 2/2 is done; pieces still missing: 3 of share 1/2" in out and "prepared: " in out
    # the script of a batch job has the number of its first process but is no step
    monkeypatch.delenv(variables[1])
    assert "missing" not in prepare_corpus.main(arguments(inputs))


@pytest.mark.parametrize("share", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_share_that_is_none(inputs, share, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare_corpus.main(arguments(inputs, "--share", share))
    assert f"--share {share}: give K/N" in capsys.readouterr().err


IN_SMALL_PIECES = """
import sys
from tinybert_dist.data import corpus
from tinybert_dist.stages import prepare_corpus
corpus.PIECE_BYTES = 20_000
prepare_corpus.main(sys.argv[1:])
"""


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_machines_that_share_the_folder_alone(inputs, monkeypatch, num_workers):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 20_000)
    prepare_corpus.main(arguments(inputs))
    expected = (inputs / "out" / "manifest.json").read_bytes()
    shutil.rmtree(inputs / "out")
    more = ["--num_workers", str(num_workers)]
    commands = [
        [sys.executable, "-c", IN_SMALL_PIECES, *arguments(inputs, "--share", f"{k}/2", *more)]
        for k in (1, 2)
    ]
    machines = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert any("prepared: " in output for output in outputs), "the one that ends last joins"
    assert all("prepared: " in output or "pieces still missing" in output for output in outputs)
    assert (inputs / "out" / "manifest.json").read_bytes() == expected
    TokenDataset.open(inputs / "out", verify=True)


def test_on_several_machines_what_another_has_just_written_may_be_seen_late(inputs, monkeypatch):
    """A launch on two: whoever ends first looks again, and so none ends well before the corpus is whole.

    Both join it then, the same, and one of them tells wandb.
    """
    monkeypatch.setattr(corpus, "PIECE_BYTES", 20_000)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    tracked = arguments(inputs, "--wandb_mode", "offline")
    command = [sys.executable, "-c", IN_SMALL_PIECES, *tracked]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    while not (inputs / "out" / "share-1-of-2.json").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    time.sleep(1)
    assert first.poll() is None
    summary = prepare_corpus.main([*tracked, "--share", "2/2"])
    assert "missing" not in summary
    output = first.communicate(timeout=60)[0]
    assert first.returncode == 0 and "prepared: " in output and "still missing" not in output
    assert len(wandb_files.run_files(inputs / "out")) == 1


def test_one_wandb_run_of_the_share_that_joins(inputs, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE_BYTES", 50_000)
    tracked = arguments(inputs, "--wandb_mode", "offline")
    assert "missing" in prepare_corpus.main([*tracked, "--share", "2/2"])
    assert not (inputs / "out" / "wandb").exists()
    joined = prepare_corpus.main([*tracked, "--share", "1/2"])
    prepare_corpus.main([*tracked, "--share", "1/2"])  # nothing is tokenised, nothing is there to tell
    (file,) = wandb_files.run_files(inputs / "out")
    assert wandb_files.summary(file)["corpus/rows"] == joined["rows"] > 0
    # it is no part of the corpus, and stays when another takes its place
    (inputs / "corpus.txt").write_text("Something else now.\n")
    assert prepare_corpus.main(arguments(inputs, "--wandb_mode", "disabled"))["sentences"] == 1
    assert file.exists()


@pytest.mark.dist
def test_the_processes_of_a_launch_share_the_work(inputs, launch):
    prepare_corpus.main(arguments(inputs))
    expected = TokenDataset.open(inputs / "out").fingerprint
    shutil.rmtree(inputs / "out")
    result = launch("prepare_corpus", *arguments(inputs), num_processes=2)
    assert "; share 1/2" in result.stdout and "; share 2/2" in result.stdout and "prepared: " in result.stdout
    assert TokenDataset.open(inputs / "out", verify=True).fingerprint == expected


def test_urls_and_hub_datasets_are_corpora(inputs, tmp_path):
    whole = prepare_corpus.main(arguments(inputs))
    fsspec.filesystem("memory").pipe("/texts/corpus.txt", (inputs / "corpus.txt").read_bytes())
    remote = prepare_corpus.main(arguments(inputs, "--train_file_path", "memory://texts"))
    assert (
        remote["text_tokens_tokenized"] == whole["text_tokens"] and remote["documents"] == whole["documents"]
    )
    again = prepare_corpus.main(arguments(inputs, "--train_file_path", "memory://texts"))
    assert again["text_tokens_tokenized"] == 0 and again["fingerprint"] == remote["fingerprint"]
    fsspec.filesystem("memory").pipe("/texts/corpus.txt", b"One more.\n")
    changed = prepare_corpus.main(arguments(inputs, "--train_file_path", "memory://texts"))
    assert (changed["sentences"], changed["pieces_tokenized"]) == (1, 1)
    (tmp_path / "hub").mkdir()
    shutil.move(inputs / "corpus.txt", tmp_path / "hub" / "corpus.txt")
    hub = f"hub:{tmp_path / 'hub'}"
    rows = prepare_corpus.main(arguments(inputs, "--train_file_path", hub))
    assert rows["sentences"] == pytest.approx(whole["sentences"], abs=20), "tabs are not fields there"
    assert prepare_corpus.main(arguments(inputs, "--train_file_path", hub))["text_tokens_tokenized"] == 0
