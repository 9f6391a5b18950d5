import gzip

import numpy as np
import pytest

from tinybert_dist.config import UserError
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import WordVectors

ROWS = ["king 1 0 0", "queen 0.9 0.1 0", "man 0.5 0.5 0", "apple 0 0 1", "pear 0 0.1 0.9"]


def write(folder, rows, name="vectors.txt"):
    path = folder / name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def read(path, policy="error", **options):
    return WordVectors.read(path, BadRecords(policy), **options)


def test_neighbours_of_real_glove_equal_brute_force(shared_data):
    path = shared_data / "glove" / "glove.6B.50d.real-12.5k.txt"
    vectors = read(path)
    assert len(vectors) == 12_526
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    words = [line[0] for line in lines]
    matrix = np.array([line[1:] for line in lines], dtype=np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    # more words than one block holds, so that the seam between blocks is crossed
    asked = ["good", "terrible", "movie", "london", "three", *words[500:900]]
    found = vectors.neighbours(asked, 15)
    for word in asked:
        similarity = matrix @ matrix[words.index(word)]
        similarity[words.index(word)] = -np.inf
        expected = [words[i] for i in np.argsort(-similarity)[:15]]
        assert list(found[word]) == expected, word
    assert "better" in found["good"]


@pytest.mark.parametrize("apart", [1e-9, 0])
def test_nearly_equal_neighbours_stand_in_the_order_of_float64(apart):
    # more of them than are shortlisted, and float32 cannot tell them apart
    draw = np.random.default_rng(0)
    middle = draw.normal(size=300)
    table = np.stack([draw.normal(size=300), *(middle + apart * draw.normal(size=300) for _ in range(60))])
    words = [f"word{row}" for row in range(len(table))]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = (unit @ unit[0]).round(12)
    expected = [words[row] for row in np.argsort(-cosines[1:], kind="stable")[:5] + 1]
    assert apart or expected == words[1:6]
    for company in ([], words[1:], words[:0:-1]):
        found = WordVectors(words, table).neighbours([*company, words[0]], 5)
        assert list(found[words[0]]) == expected


def test_unknown_word_has_no_neighbours_and_count_is_kept(tmp_path):
    found = read(write(tmp_path, ROWS)).neighbours(["king", "zebra"], 2)
    assert found == {"king": ("queen", "man"), "zebra": ()}


def test_title_case_is_kept(tmp_path):
    vectors = read(write(tmp_path, [*ROWS, "Apple 0.1 0 0.9"]))
    found = vectors.neighbours(["King", "KING", "Apple"], 1)
    # Apple stands in the file as such: its neighbours come as they are
    assert found == {"King": ("Queen",), "KING": ("queen",), "Apple": ("apple",)}


def test_asking_for_more_than_there_is(tmp_path):
    rows = [*ROWS, "nothing 0 0 0", "king 0 0 1"]
    found = read(write(tmp_path, rows)).neighbours(["king"], 50)
    assert sorted(found["king"]) == ["apple", "man", "pear", "queen"]


def test_max_rows_header_spaces_and_gzip(tmp_path):
    path = tmp_path / "vectors.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["6 3", *ROWS[:2], ". . 0 1 0", *ROWS[2:]]))
    vectors = read(path, max_rows=4)
    assert vectors.words == ["king", "queen", ". .", "man"]


@pytest.mark.parametrize("row", ["dog 1 2", "dog 1 2 x", "dog 1 nan 2", "", "1 2 3"])
def test_bad_row_is_named(tmp_path, row):
    path = write(tmp_path, [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(UserError, match=r"vectors\.txt:3: not a word followed by 3 numbers"):
        read(path)
    bad = BadRecords("skip")
    assert WordVectors.read(path, bad).words == ["king", "queen", "man", "apple", "pear"]
    assert bad.total == 1


def test_empty_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="holds no word vector"):
        read(write(tmp_path, []), policy="skip")
    with pytest.raises(UserError, match=r"absent\.txt"):
        read(tmp_path / "absent.txt")
