import itertools
import os

import pytest

from tinybert_dist.config import UserError
from tinybert_dist.pipeline import contents
from tinybert_dist.pipeline.contents import Content, contents_of


def digests(path, **options):
    found = contents_of(str(path), **options)
    return found and {name: content.digest for name, content in found.items()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    for name in (
        "train.tsv",
        "train_aug.tsv",
        "deep/er/text.txt",
        ".hidden/x",
        ".state.json",
        "wandb/offline-run-1/log",
        "dev.tsv.before-1",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_files_count_by_name_and_content(folder, tmp_path):
    found = digests(folder)
    assert set(found) == {"train.tsv", "train_aug.tsv", "deep/er/text.txt"}
    assert set(digests(folder, without=["train_aug*"])) == {"train.tsv", "deep/er/text.txt"}
    assert set(digests(folder, only=["*.tsv"])) == {"train.tsv", "train_aug.tsv"}
    assert set(digests(folder / "train.tsv")) == {"train.tsv"}
    assert set(digests(folder / "*.tsv")) == {"train.tsv", "train_aug.tsv"}
    (folder / "copy").write_text("train.tsv")
    assert digests(folder)["copy"] == found["train.tsv"] != found["train_aug.tsv"]
    for nothing in (tmp_path / "none", tmp_path / "none" / "*.txt", "google-bert/bert-base-uncased"):
        assert contents_of(str(nothing)) is None


def test_what_has_not_changed_is_not_read_again(folder):
    file = folder / "train.tsv"
    known = contents_of(str(file))
    assert known is not None
    remembered = {"train.tsv": Content(known["train.tsv"].version, "remembered")}
    assert digests(file, known=remembered) == {"train.tsv": "remembered"}
    file.write_text("other text")
    os.utime(file, ns=(0, 0))  # whatever its time pretends
    assert digests(file, known=remembered)["train.tsv"] not in {"remembered", known["train.tsv"].digest}


def test_large_files_count_by_size_time_and_blocks(folder, monkeypatch):
    monkeypatch.setattr(contents, "WHOLE_BYTES", 1000)
    numbers = itertools.count()

    def digest_of(content, time_ns=5):
        file = folder / f"large-{next(numbers)}"
        file.write_bytes(content)
        os.utime(file, ns=(time_ns, time_ns))
        return digests(file)[file.name]

    content = os.urandom(200_000)
    first = digest_of(content)
    assert digest_of(content) == first
    assert len({first, digest_of(content, 6), digest_of(content[:-1]), digest_of(b"!" + content[1:])}) == 4
    assert digest_of(content[:-1] + b"!") != first


def test_urls_count_by_their_version(tmp_path):
    import fsspec

    with fsspec.open("memory://pipeline/corpus.txt", "w") as file:
        file.write("one")
    first = digests("memory://pipeline/corpus.txt")
    assert set(first) == {"corpus.txt"}
    with fsspec.open("memory://pipeline/corpus.txt", "w") as file:
        file.write("other")
    assert digests("memory://pipeline/corpus.txt") != first
    with pytest.raises(UserError, match="memory://pipeline/none"):
        contents_of("memory://pipeline/none.txt")
