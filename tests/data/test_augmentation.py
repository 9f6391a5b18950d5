import sys

import numpy as np
import pytest
import torch
from tiny_masked_lm import save_masked_lm

from tinybert_dist.config import UserError
from tinybert_dist.data.augmentation import CandidateFinder, Candidates, augment_example, draw
from tinybert_dist.data.masked_words import MaskedWords
from tinybert_dist.data.segmenters import (
    AutoSegmenter,
    ChineseCharacters,
    ChineseWords,
    EnglishWords,
    Words,
)
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.models import load_masked_lm, load_tokenizer

TEXTS = [
    "The movie was great , the plot not bad .",
    "unwatchable film!",
    "A very boring movie; I don't love it",
    "good",
    "the a was",
    "the  movie was GREAT, the plot not bad.",
]
TOP = 6
# "Beijing's weather is very good", in Chinese
BEIJING = "\u5317\u4eac\u7684\u5929\u6c14\u5f88\u597d"


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory):
    folder = save_masked_lm(tmp_path_factory.mktemp("masked_lm"))
    return load_masked_lm(folder), load_tokenizer(folder)


@pytest.fixture(scope="module")
def vectors():
    words = ["unwatchable", "awful", "dreadful", "fine", "king"]
    rows = np.array([[1, 0, 0], [0.9, 0.1, 0], [0.8, 0.3, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    return WordVectors(words, rows)


def finder(masked_lm, vectors=None, segmenter=None, **options):
    model, tokenizer = masked_lm
    segmenter = segmenter or EnglishWords()
    return CandidateFinder(
        segmenter,
        MaskedWords(model, tokenizer, segmenter, top=TOP, **options),
        vectors,
        TOP,
    )


@torch.no_grad()
def one_at_a_time(masked_lm, text, mask_pieces):
    """Logits of the full head for one query, the sentence tokenised as a whole, `mask_pieces` masked."""
    model, tokenizer = masked_lm
    pieces = tokenizer.tokenize(text)
    masked = [tokenizer.mask_token if i in mask_pieces else piece for i, piece in enumerate(pieces)]
    tokens = ["[CLS]", *masked, "[SEP]", *pieces, "[SEP]"]
    types = [0] * (len(pieces) + 2) + [1] * (len(pieces) + 1)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
    logits = model(input_ids=ids, token_type_ids=torch.tensor([types])).logits[0]
    return logits[[1 + i for i in mask_pieces]]


def reference_candidates(masked_lm, vectors, text):
    """The original's candidates read literally: {word index: candidates}."""
    tokenizer = masked_lm[1]
    words = EnglishWords().split(text)
    pieces_of = [tokenizer.tokenize(word) for word in words.words]
    found = {}
    for i in words.eligible:
        start = sum(map(len, pieces_of[:i]))
        if len(pieces_of[i]) == 1:
            logits = one_at_a_time(masked_lm, text, [start])[0]
            top = tokenizer.convert_ids_to_tokens(torch.argsort(logits, descending=True)[:TOP].tolist())
            options = [t for t in top if not t.startswith("##") and t not in tokenizer.all_special_tokens]
        else:
            options = list(vectors.neighbours([words.words[i]], TOP)[words.words[i]]) if vectors else []
        found[i] = tuple(options) or (words.words[i],)
    return found


def test_eligible_words():
    words = EnglishWords().split("It's NOT a caf\u00e9-movie, 3d or 2 great!")
    assert [words.words[i] for i in words.eligible] == ["cafe", "movie", "great"]
    assert words.join() == "it ' s not a cafe - movie , 3d or 2 great !"
    assert EnglishWords(lower_case=False).split("Great Movie").words == ("Great", "Movie")


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_candidates_equal_one_query_at_a_time_with_the_full_head(masked_lm, vectors, batch_tokens):
    found = finder(masked_lm, vectors, batch_tokens=batch_tokens).find(TEXTS)
    compared = 0
    for text in TEXTS:
        expected = reference_candidates(masked_lm, vectors, text)
        assert found[text].options == expected, text
        compared += len(expected)
    assert compared >= 12
    assert found["unwatchable film!"].options[0] == ("awful", "dreadful", "fine", "king")


def test_queries_are_computed_once(masked_lm):
    search = finder(masked_lm)
    found = search.find([*TEXTS, TEXTS[0], TEXTS[0]])
    # the first and the last text differ in case and spacing only
    assert found[TEXTS[0]].options == found[TEXTS[-1]].options
    per_text = found[TEXTS[0]].num_queries
    assert per_text == 4
    unique = search.counts["queries_unique"]
    assert search.counts["queries_asked"] == unique + 3 * per_text
    search.find(TEXTS)
    assert search.counts["queries_unique"] == unique


def test_word_without_vectors_or_model_keeps_itself(masked_lm):
    search = finder(masked_lm)
    assert search.find(["unwatchable film"])["unwatchable film"].options[0] == ("unwatchable",)
    assert search.counts["unchanged"] == 1


def test_long_sentence_keeps_words_the_query_cannot_hold(masked_lm):
    text = " ".join(["movie"] * 20)
    search = finder(masked_lm, max_seq_length=13)
    found = search.find([text])[text]
    assert found.num_queries == 10
    assert found.options[10] == ("movie",)
    queries = search._masked_words.queries(found.words)
    assert len(queries[9].input_ids) == 13


def test_draws_are_reproducible_and_independent_of_order(masked_lm, vectors):
    found = finder(masked_lm, vectors).find(TEXTS)
    forward = [augment_example([t], found, 20, 0.4, seed=7, index=i) for i, t in enumerate(TEXTS)]
    backward = [
        augment_example([t], found, 20, 0.4, seed=7, index=i) for i, t in reversed(list(enumerate(TEXTS)))
    ]
    assert forward == backward[::-1]
    assert forward[0] != augment_example([TEXTS[0]], found, 20, 0.4, seed=8, index=0)
    assert forward[0] != augment_example([TEXTS[0]], found, 20, 0.4, seed=7, index=1)
    more = augment_example([TEXTS[0]], found, 40, 1.0, seed=7, index=0)
    assert len(more) > 10


def test_original_first_nothing_twice_and_p_zero(masked_lm):
    found = finder(masked_lm).find(TEXTS)
    for text in TEXTS:
        variants = augment_example([text], found, 50, 0.5, seed=0, index=3)
        assert variants[0] == (text,)
        assert len(set(variants)) == len(variants)
        assert (found[text].words.join(),) not in variants[1:]
        assert augment_example([text], found, 50, 0.0, seed=0, index=3) == [(text,)]
    assert augment_example(["the a was"], found, 50, 1.0, seed=0, index=0) == [("the a was",)]


def test_p_one_replaces_every_word_and_draws_uniformly():
    words = Words(("x", "the", "y"), (0, 2), " ")
    candidates = Candidates(words, {0: ("a", "b"), 2: ("c", "d", "e")}, 0)
    drawn = draw("x the y", candidates, 200, 1.0, np.random.default_rng(0))
    assert sorted(drawn) == [f"{a} the {c}" for a in "ab" for c in "cde"]
    generator = np.random.default_rng(1)
    single = Candidates(Words(("x",), (0,), " "), {0: ("a", "b", "c")}, 0)
    first = [draw("x", single, 1, 0.3, generator) for _ in range(6000)]
    counts = [sum(new == [word] for new in first) for word in "abc"]
    # 600 expected of each, standard deviation 23
    assert all(abs(count - 600) < 120 for count in counts)


def test_pairs_vary_one_column_at_a_time(masked_lm):
    pair = ("the movie was great", "a boring film")
    found = finder(masked_lm).find(pair)
    variants = augment_example(pair, found, 10, 0.6, seed=1, index=0)
    first = [v for v in variants[1:] if v[0] != pair[0]]
    second = [v for v in variants[1:] if v[1] != pair[1]]
    assert len(first) > 3 and len(second) > 3
    assert variants == [pair, *first, *second]
    assert all(b == pair[1] for _, b in first) and all(a == pair[0] for a, _ in second)


def test_chinese_words_are_masked_whole_and_stay_dictionary_words(masked_lm):
    segmenter = ChineseWords()
    words = segmenter.split(BEIJING)
    assert words.words == ("\u5317\u4eac", "\u7684", "\u5929\u6c14", "\u5f88", "\u597d")
    assert words.eligible == (0, 2, 4)
    # what could stand there does not turn the sentence's label
    negated = "\u4e0d\u9519", "\u6ca1\u6709", "\u4e0d"
    assert not any(word in segmenter.dictionary[len(word)] for word in negated)
    found = finder(masked_lm, segmenter=segmenter).find([BEIJING])[BEIJING]
    tokenizer = masked_lm[1]
    vocabulary = tokenizer.get_vocab()
    for i, start in ((0, 0), (2, 3), (4, 6)):
        width = len(words.words[i])
        places = list(range(start, start + width))
        log_probabilities = one_at_a_time(masked_lm, BEIJING, places).log_softmax(-1)
        scores = {
            word: sum(log_probabilities[k, vocabulary[c]].item() for k, c in enumerate(word))
            for word in segmenter.dictionary[width]
            if all(c in vocabulary for c in word)
        }
        assert len(scores) > TOP
        assert found.options[i] == tuple(sorted(scores, key=scores.get, reverse=True)[:TOP])
    variants = augment_example([BEIJING], {BEIJING: found}, 20, 0.5, seed=0, index=0)
    assert len(variants) > 5 and all(len(new) == len(BEIJING) and " " not in new for (new,) in variants)


def test_chinese_characters(masked_lm):
    words = ChineseCharacters().split("\u5317\u4eac GOOD day!")
    assert words.words == ("\u5317", "\u4eac", " ", "good", " ", "day", "!")
    assert words.join() == "\u5317\u4eac good day!"
    assert words.eligible == (0, 1, 3, 5)
    found = finder(masked_lm, segmenter=ChineseCharacters()).find([BEIJING])[BEIJING]
    logits = one_at_a_time(masked_lm, BEIJING, [0])[0]
    top = masked_lm[1].convert_ids_to_tokens(logits.topk(TOP).indices.tolist())
    special = masked_lm[1].all_special_tokens
    assert found.options[0] == tuple(t for t in top if not t.startswith("##") and t not in special)


def test_auto_segmenter_follows_the_script(masked_lm):
    segmenter = AutoSegmenter()
    assert segmenter.split("Great Movie!").words == ("great", "movie", "!")
    assert segmenter.split(BEIJING).words[0] == "\u5317\u4eac"
    both = finder(masked_lm, segmenter=segmenter).find([BEIJING, TEXTS[0]])
    assert (
        both[BEIJING].options == finder(masked_lm, segmenter=ChineseWords()).find([BEIJING])[BEIJING].options
    )
    assert both[TEXTS[0]].options == finder(masked_lm).find([TEXTS[0]])[TEXTS[0]].options


def test_missing_jieba_is_explained(masked_lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match="pip install jieba"):
        ChineseWords().split(BEIJING)
    # one stray character in an English text does not need it
    mixed = "the movie was great , a very good plot \u597d"
    found = finder(masked_lm, segmenter=AutoSegmenter()).find([mixed])[mixed]
    assert found.words.words[-1] == "\u597d" and len(found.options[9]) > 1
