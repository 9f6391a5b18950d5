import fsspec
import numpy as np
import pytest
from task_rows import WORDS, make_tokenizer, write_tsv

from tinybert_dist.data.tokens import TokenDataset


@pytest.fixture
def texts(tmp_path):
    """A folder with a.txt, b.txt and c.txt of two documents each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, name in enumerate(["a.txt", "b.txt", "c.txt"]):
        document = "The cat sat on the mats .\nA dog , the dog\n" * (i + 2)
        (folder / name).write_text(f"{document}\n{document}")
    return folder


@pytest.fixture
def memory():
    """The file system of memory:// URLs, empty before and after."""
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    yield file_system
    file_system.store.clear()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The tokenizer of task_rows.WORDS."""
    return make_tokenizer(tmp_path_factory.mktemp("vocabulary"), WORDS)


@pytest.fixture
def task(tmp_path):
    """train.tsv of 30 rows with labels a and b, dev.tsv, more.txt of 5 texts."""
    folder = tmp_path / "task"
    write_tsv(folder / "train.tsv", [(f"w{i % 20} w{i % 7}", "ab"[i % 2]) for i in range(30)])
    write_tsv(folder / "dev.tsv", [("w1", "a"), ("w2", "b")])
    (folder / "more.txt").write_text("".join(f"w{i}\n" for i in range(5)))
    return folder


@pytest.fixture(scope="session")
def dataset():
    """101 rows of two segments in memory, with labels 0, 1 and 2."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 90, rng.integers(3, 30)) for _ in range(101)]
    return TokenDataset.from_rows(ids, [len(x) // 2 for x in ids], [float(i % 3) for i in range(101)])
