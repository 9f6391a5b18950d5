"""What a corpus is made of: kinds of text, of output folders, and mistakes in them."""

import gzip
import json
from collections import Counter

import pytest
from corpus_runs import CLS, SEP, WORDS, bare, make_tokenizer, rows_of, run, text_of

from tinybert_dist.config import UserError
from tinybert_dist.data.corpus import prepare


def test_pregenerated_rows_are_taken_as_they_are(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    row = {"tokens": ["[CLS]", "the", "[SEP]", "cat", "##s", "[SEP]"], "segment_ids": [0, 0, 0, 1, 1, 1]}
    single = {"tokens": ["[CLS]", "dog", "[SEP]"], "segment_ids": [0, 0, 0], "is_random_next": False}
    (folder / "epoch_0.json").write_text(json.dumps(row) + "\n" + json.dumps(single) + "\n")
    (folder / "epoch_0_metrics.json").write_text('{"num_training_examples": 2, "max_seq_len": 16}')
    summary = run(folder, tmp_path)
    assert summary["files"] == 1
    cats = [CLS, WORDS.index("the"), SEP, WORDS.index("cat"), WORDS.index("##s"), SEP]
    assert rows_of(tmp_path / "out") == [(cats, 3), ([CLS, WORDS.index("dog"), SEP], 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["[CLS]", "the"], "segment_ids": [0]}, "not two lists of one length"),
        ({"tokens": ["[CLS]", "the"], "segment_ids": [1, 0]}, "zeros followed by ones"),
        ({"tokens": ["the"] * 17, "segment_ids": [0] * 17}, "17 tokens, where --max_seq_length is 16"),
        ({"tokens": []}, "not two lists"),
    ],
)
def test_bad_pregenerated_rows_are_named(tmp_path, row, message):
    good = {"tokens": ["[CLS]", "the", "[SEP]"], "segment_ids": [0, 0, 0]}
    (tmp_path / "e.json").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"e\.json:2: .*{message}"):
        run(tmp_path / "e.json", tmp_path)


def test_a_wrong_vocabulary_is_warned_of_with_the_share(tmp_path):
    (tmp_path / "a.txt").write_text("the cat \u4e2d\u6587\n")
    with pytest.warns(UserWarning, match=r"50\.0 % of the tokens.*unknown to the vocabulary"):
        summary = run(tmp_path / "a.txt", tmp_path)
    assert summary["unknown_tokens"] == 2


def test_markers_in_the_text_do_not_become_structure(tmp_path):
    (tmp_path / "a.txt").write_text("the cat [SEP] [MASK] the dog\n" * 20)
    with pytest.warns(UserWarning, match="unknown"):
        run(tmp_path / "a.txt", tmp_path)
    tokens = Counter(token for ids, _ in rows_of(tmp_path / "out") for token in ids)
    assert tokens[WORDS.index("[MASK]")] == 0
    assert all(ids.count(SEP) <= 2 for ids, _ in rows_of(tmp_path / "out"))


def test_tables_and_archives_are_corpora_too(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_text('id,text\n1,"the cat\nsat"\n')
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "the dog"}\n'))
    summary = run(folder, tmp_path)
    assert text_of(tmp_path / "out") == bare("the cat sat the dog") and summary["documents"] == 2


def test_user_mistakes(texts, tmp_path):
    for recipe, message in [
        ({"mode": "triples"}, "--mode triples"),
        ({"max_seq_length": 4}, "max_seq_length 4"),
    ]:
        with pytest.raises(UserError, match=message):
            run(texts, tmp_path, recipe=recipe)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text in 1 files"):
        run(tmp_path / "empty.txt", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare(texts, tmp_path / "file", make_tokenizer())


@pytest.mark.parametrize("name", ["notes.md", "model.safetensors", ".hidden", "part-notours"])
def test_a_folder_with_anything_else_is_refused_and_untouched(texts, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds {name}"):
        run(texts, tmp_path)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_output_inside_the_input_folder_is_no_input(texts):
    for _ in range(2):
        summary = prepare(texts, texts / "out", make_tokenizer(), progress=False)
        assert summary["files"] == 3
