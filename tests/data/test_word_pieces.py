import gzip
import itertools
import pickle
import random

import pytest
from transformers import BertTokenizerFast

from tinybert_dist.data import word_pieces
from tinybert_dist.data.word_pieces import WordPieces

NAMES = ["bert-base-uncased", "bert-base-cased", "bert-base-chinese"]


def tokenizer(shared_data, name):
    vocab = shared_data / "vocab" / name / "vocab.txt"
    return BertTokenizerFast(vocab=str(vocab), do_lower_case=name.endswith("uncased"))


@pytest.mark.parametrize("name", NAMES)
def test_real_texts_get_the_tokenizers_own_ids(shared_data, name):
    texts = []
    for file in ("en/wikinews_en.sent.txt.gz", "en/brown.sent.txt.gz", "zh/zhwiki_20mb.txt.gz"):
        with gzip.open(shared_data / "corpus" / file, "rt", encoding="utf-8") as lines:
            texts += [line.rstrip("\n") for line in itertools.islice(lines, 3000)]
    bert = tokenizer(shared_data, name)
    expected = bert(texts, add_special_tokens=False)["input_ids"]
    pieces = WordPieces.of(bert)
    assert pieces.by_word
    assert pieces.encode(texts) == expected
    assert pieces.encode(texts) == expected, "and again, out of the cache"


@pytest.mark.parametrize("name", NAMES)
def test_strange_texts_get_the_tokenizers_own_ids(shared_data, name):
    alphabet = (
        "aB1. ,'-\u00e9e\u0301\u0301\u0327 \t\u00a0\u3000\u2028\u0000\u0007\ufffd\u200b\u200d\u00ad\u4e2d"
    )
    alphabet += (
        "\u9fff\u3400\u30ab\u3099\u0130\u03a3\u03c3\u1e9e\uac00\u1100\u1161\U0001f600\U00020000\ufe0f\u0300"
    )
    alphabet += " [MASK]##"
    draw = random.Random(0)
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 30))) for _ in range(20000)]
    texts += ["x" * 300, "\u4e2d" * 300, " " * 9, "", "a" * 100 + "\u0301" * 5]
    pieces = WordPieces.of(tokenizer(shared_data, name))
    assert pieces.encode(texts) == pieces.encode_whole(texts)


def test_special_tokens_in_a_text_are_text(shared_data):
    pieces = WordPieces.of(tokenizer(shared_data, NAMES[0]))
    for encode in (pieces.encode, pieces.encode_whole):
        (ids,) = encode(["a [SEP] b [MASK]"])
        assert pieces.sep_id not in ids and 103 not in ids and len(ids) > 6


def test_the_cache_is_bounded(shared_data, monkeypatch):
    monkeypatch.setattr(word_pieces, "MAX_CACHED_WORDS", 100)
    pieces = WordPieces.of(tokenizer(shared_data, NAMES[0]))
    texts = [f"{i} and {i + 1}" for i in range(1000)]
    for start in range(0, 1000, 50):
        assert pieces.encode(texts[start : start + 50]) == pieces.encode_whole(texts[start : start + 50])
        assert len(pieces._cache) <= 200
    pieces.encode(["y" * 1000])
    assert "y" * 1000 not in pieces._cache


def test_added_words_turn_the_cache_off(shared_data):
    bert = tokenizer(shared_data, NAMES[0])
    bert.add_tokens(["new york"])
    pieces = WordPieces.of(bert)
    assert not pieces.by_word
    assert pieces.encode(["in new york now"]) == [
        bert("in new york now", add_special_tokens=False)["input_ids"]
    ]
    assert len(bert) - 1 in pieces.encode(["in new york now"])[0]


def test_truncation_set_on_the_tokenizer_does_not_reach_the_corpus(shared_data):
    bert = tokenizer(shared_data, NAMES[0])
    bert(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    pieces = WordPieces.of(bert)
    assert len(pieces.encode_whole(["a b c d e f"])[0]) == 6
    assert pieces.fingerprint == WordPieces.of(tokenizer(shared_data, NAMES[0])).fingerprint


def test_the_fingerprint_is_of_vocabulary_and_settings_not_of_the_path(shared_data, tmp_path):
    bert = tokenizer(shared_data, NAMES[0])
    bert.save_pretrained(tmp_path)
    again = BertTokenizerFast.from_pretrained(tmp_path)
    mark = WordPieces.of(bert).fingerprint
    assert WordPieces.of(again).fingerprint == mark
    cased = BertTokenizerFast(vocab=str(shared_data / "vocab" / NAMES[0] / "vocab.txt"), do_lower_case=False)
    assert WordPieces.of(cased).fingerprint != mark
    assert WordPieces.of(tokenizer(shared_data, NAMES[1])).fingerprint != mark
    assert pickle.loads(pickle.dumps(WordPieces.of(bert))).fingerprint == mark  # noqa: S301


@pytest.mark.parametrize("name", NAMES)
def test_words_learned_in_a_row_get_the_ids_they_have_alone(shared_data, name):
    pieces = WordPieces.of(tokenizer(shared_data, name))
    draw = random.Random(1)
    letters = "abcxyzABCXYZ0189" * 3 + "\u00e9\u0301\u4e2d\u0660_"
    words = {"".join(draw.choices(letters, k=draw.randint(1, 14))) for _ in range(20000)}
    words |= {"a" * 100, "a" * 101, "UNK", "0", "x" * 5000}
    texts = sorted(words)
    assert pieces.encode(texts) == [pieces.encode_whole([text])[0] for text in texts]


def test_the_words_met_first_outlive_a_full_cache(shared_data, monkeypatch):
    monkeypatch.setattr(word_pieces, "MAX_CACHED_WORDS", 100)
    pieces = WordPieces.of(tokenizer(shared_data, NAMES[0]))
    pieces.encode(["the of and"])
    pieces.encode([f"word{i}" for i in range(200)])
    assert {"the", "of", "and"} <= pieces._cache.keys() and len(pieces._cache) == 50
