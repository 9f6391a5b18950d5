"""What is told while a corpus is made, and by a dry run."""

from corpus_runs import line, make_tokenizer, run

from tinybert_dist.data import corpus_build
from tinybert_dist.data.corpus import prepare


def test_a_dry_run_writes_nothing(texts, tmp_path):
    summary = run(texts, tmp_path, dry_run=True)
    assert summary["files_tokenized"] == 3 and summary["bytes_to_read"] > 0
    assert not (tmp_path / "out").exists()


def test_progress_outside_a_terminal_is_lines(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpus_build, "PLAIN_PROGRESS_EVERY_S", 0.0)
    prepare(texts, tmp_path / "out", make_tokenizer())
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("tokenising") for line in lines)
    assert "100%" in lines[-1] and "\r" not in "".join(lines)


def test_progress_moves_while_the_processes_are_inside_their_pieces(tmp_path, monkeypatch, capsys):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        text = "".join(f"{name} {line(i, 11)}\n" for i in range(60_000))
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    monkeypatch.setattr(corpus_build, "PLAIN_PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(corpus_build, "POLL_S", 0.01)
    prepare(tmp_path / "texts", tmp_path / "out", make_tokenizer(), num_workers=2)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(entry.split("%")[0].split()[-1]) for entry in lines if "0/2 pieces" in entry]
    assert shares == sorted(shares) and len({share for share in shares if 0 < share < 100}) >= 3
    assert "100%" in lines[-1] and "B/s" in lines[-1] and any("<00:" in entry for entry in lines)
