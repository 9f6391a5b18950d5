import numpy as np
import pytest
import torch
from literal_augmentation import LiteralAugmentation, literal_model
from tiny_masked_lm import save_masked_lm
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tinybert_dist.config import UserError
from tinybert_dist.data import masked_words
from tinybert_dist.data.augmentation import CandidateFinder
from tinybert_dist.data.masked_logits import MaskedLogits, Query
from tinybert_dist.data.masked_words import MaskedWords, whole_words
from tinybert_dist.data.segmenters import EnglishWords
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.models import load_masked_lm, load_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = SIZES | {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.5}
DISTIL = {
    "vocab_size": 60,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "initializer_range": 0.5,
}
FAMILIES = {
    "bert": (BertForMaskedLM, BertConfig(**SMALL), True),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SMALL), True),
    "electra": (ElectraForMaskedLM, ElectraConfig(**SMALL, embedding_size=8), True),
    # one layer that is run twice; layers made of other parts
    "albert": (AlbertForMaskedLM, AlbertConfig(**SMALL, embedding_size=8), False),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig(**DISTIL), False),
}
TEXTS = ["the movie was great , the plot not bad .", "a very boring film", "good actor", "great", "the dog"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = save_masked_lm(tmp_path_factory.mktemp("masked_words"))
    return load_masked_lm(folder), load_tokenizer(folder)


def asked(words, texts=TEXTS):
    return [q for text in texts for q in words.queries(EnglishWords().split(text)).values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_the_masks_equal_those_of_the_whole_model(family):
    model_class, config, packs = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config).eval()
    queries = [
        Query(torch.randint(5, 60, (length,)).tolist(), 3, position, width, width > 1)
        for length, position, width in ((7, 1, 1), (7, 4, 1), (7, 2, 2), (9, 5, 2), (12, 3, 1))
    ]
    types = (0, 1) if family in {"bert", "electra", "albert"} else None
    segments = [[0] * q.second_at + [1] * (len(q.input_ids) - q.second_at) for q in queries]
    with torch.inference_mode():
        expected = [
            model(
                torch.tensor([q.input_ids]), **({"token_type_ids": torch.tensor([s])} if types else {})
            ).logits[0, q.position : q.position + q.width]
            for q, s in zip(queries, segments, strict=True)
        ]
    logits = MaskedLogits(model, types, torch.device("cpu"), torch.float32)
    assert logits.packs == packs
    if packs:
        groups = logits.at_masks(queries)
        assert [group.shape[:2] for group in groups] == [(2, 1), (1, 2), (1, 2), (1, 1)]
    else:
        groups = [logits.at_masks(part) for part in (queries[:2], queries[2:3], queries[3:4], queries[4:])]
        groups = [group for (group,) in groups]
    for row, full in zip([row for group in groups for row in group], expected, strict=True):
        torch.testing.assert_close(row, full)
    before = logits.at_masks(queries[:1])[0]
    with logits.in_double():
        assert logits.at_masks(queries[:1])[0].dtype == torch.float64
    # the way to float64 and back leaves no trace
    assert torch.equal(logits.at_masks(queries[:1])[0], before)


def test_what_is_computed_for_the_masked_rows_alone(pair):
    model, tokenizer = pair
    words = MaskedWords(model, tokenizer, EnglishWords(), top=6)
    queries = asked(words)
    rows = {"head": 0, "last feed-forward": 0, "first feed-forward": 0}

    def count(name):
        return lambda _m, inputs, _o: rows.update({name: rows[name] + inputs[0].shape[:-1].numel()})

    layers = model.bert.encoder.layer
    hooks = [
        model.cls.register_forward_hook(count("head")),
        layers[-1].layer.intermediate.register_forward_hook(count("last feed-forward")),
        layers[0].intermediate.register_forward_hook(count("first feed-forward")),
    ]
    words.answer(queries)
    for hook in hooks:
        hook.remove()
    # all of these few queries were needed to measure the error, in float32 and in float64
    asked_times = 3 * len(queries) + words.num_settled
    assert rows["head"] == rows["last feed-forward"] == asked_times
    assert rows["first feed-forward"] > 8 * rows["head"]


def wide_model(folder):
    """A model as wide as BERT-base; every other word of its vocabulary is nearly the one before."""
    words = [f"{a}{b}{c}" for a in "bdfghklmn" for b in "aeiou" for c in "bdfgklmnprst"]
    save_masked_lm(folder, extra_words=words)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2)).eval()
    weight = model.bert.embeddings.word_embeddings.weight.data
    weight[71::2] = weight[70:-1:2] * (1 + 1e-7 * torch.randn_like(weight[70:-1:2]))
    return model, tokenizer, words


def test_answers_depend_on_the_query_alone(tmp_path, monkeypatch):
    model, tokenizer, words = wide_model(tmp_path)
    texts = [" ".join(words[i : i + 3 + i % 7]) for i in range(0, 40, 5)]

    def answers(batch_tokens, texts=texts):
        found = MaskedWords(model, tokenizer, EnglishWords(), top=15, batch_tokens=batch_tokens)
        return found.answer(asked(found, texts)), found

    whole, found = answers(4096)
    assert len(whole) > 40 and found.num_settled > 30
    for batch_tokens in (1, 512):
        assert answers(batch_tokens)[0] == whole
    # other company in the batch, as on another rank
    parts = [answers(512, texts[i : i + 2])[0] for i in range(0, len(texts), 2)]
    assert [answer for part in parts for answer in part] == whole
    # and without float64 they do depend on it
    monkeypatch.setattr(masked_words, "SAFETY", 0)
    assert any(answers(batch_tokens)[0] != whole for batch_tokens in (1, 512))


def test_equal_logits_go_by_id(pair):
    scores = torch.tensor([[1.0, 3.0, 3.0 + 1e-13, 2.0, 3.0]], dtype=torch.float64)
    order, sure = masked_words._best(scores, 4, None)
    assert order.tolist() == [[1, 2, 4, 3]] and sure.all()
    order, sure = masked_words._best(torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 3.0 - 1e-6]]), 2, 1e-5)
    assert order[0].tolist() == [1, 2] and sure.tolist() == [True, False]


def test_bfloat16_encoder_keeps_a_float32_head(tmp_path, pair):
    folder = save_masked_lm(tmp_path)
    model, tokenizer = load_masked_lm(folder), load_tokenizer(folder)
    words = MaskedWords(model, tokenizer, EnglishWords(), top=6, dtype=torch.bfloat16)
    assert not words.is_exact and words._logits.packs
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert model.cls.predictions.decoder.weight.dtype == torch.float32
    answers = words.answer(asked(words))
    exact = MaskedWords(*pair, EnglishWords(), top=6)
    shared = [len(set(a) & set(b)) / len(b) for a, b in zip(answers, exact.answer(asked(exact)), strict=True)]
    assert sum(shared) / len(shared) > 0.8 and words.num_settled == 0


def test_continuations_and_special_tokens_are_no_words(pair):
    words = whole_words(pair[1])
    ids = pair[1].get_vocab()
    assert words[ids["movie"]] == "movie"
    assert words[ids["##able"]] is None and words[ids["[MASK]"]] is None


def test_tokenizer_without_mask_or_larger_than_the_model(pair, tmp_path):
    model, _ = pair
    larger = load_tokenizer(save_masked_lm(tmp_path / "larger", extra_words=["zebra"]))
    with pytest.raises(UserError, match="the tokenizer knows"):
        MaskedWords(model, larger, EnglishWords(), top=3)
    larger.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        MaskedWords(model, larger, EnglishWords(), top=3)


def test_real_sentences_equal_the_literal_reference(shared_data):
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased")
    glove = shared_data / "glove" / "glove.6B.50d.real-12.5k.txt"
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=30_522, num_hidden_layers=2)).eval()
    lines = (shared_data / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")
    texts = [line.split("\t")[0].strip() for line in lines[101:109]]
    vectors = WordVectors.read(glove, BadRecords())
    rows = [line.split(" ")[1:] for line in glove.read_text(encoding="utf-8").splitlines()]
    table = np.array(rows, dtype=np.float64)
    literal = LiteralAugmentation(literal_model(model.double()), tokenizer, vectors.words, table, 15)
    with torch.inference_mode():
        expected = {text: literal.candidates(text) for text in texts[::2]}
    model.float()
    segmenter = EnglishWords()
    for batch_tokens in (512, 8192):
        words = MaskedWords(model, tokenizer, segmenter, top=15, batch_tokens=batch_tokens)
        found = CandidateFinder(segmenter, words, vectors, 15).find(texts)
        assert {text: found[text].options for text in expected} == expected
    assert sum(len(of_text) for of_text in expected.values()) > 10
