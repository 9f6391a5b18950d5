import gzip
import itertools
import shutil

import pytest

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


def test_only_the_first_process_of_a_launch_prepares(inputs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert prepare_corpus.main(arguments(inputs)) == {}
    assert not (inputs / "out").exists()
