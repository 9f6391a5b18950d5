"""Ids as one byte for the frequent ones and two or three for the others: back to the same, in fewer bytes."""

import gzip
import itertools
import json

import numpy as np
import pytest
from corpus_runs import run

from tinybert_dist.data.token_codes import Lists, encode, ids_by_lead, num_short, rest_type
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.models import load_tokenizer


def decode(lead, rest, short_ids):
    ids = ids_by_lead(short_ids, rest.values.dtype)[lead.values]
    ids[lead.values >= len(short_ids)] += rest.values
    return ids


@pytest.mark.parametrize("vocab_size", [1, 2, 200, 256, 257, 21128, 65535, 65536, 65537, 250002])
def test_every_id_comes_back(vocab_size):
    draw = np.random.default_rng(vocab_size)
    ids = (vocab_size * draw.random(5000) ** 8).astype(np.uint32)
    ids[:3] = 0, vocab_size // 2, vocab_size - 1
    ends = np.sort(draw.integers(0, 5001, 99))
    offsets = np.array([0, *ends, 5000], np.int32)
    lead, rest, short_ids = encode(Lists(ids, offsets), vocab_size)
    assert decode(lead, rest, short_ids).tolist() == ids.tolist()
    assert (lead.values.dtype, rest.values.dtype) == (np.uint8, rest_type(vocab_size))
    assert lead.offsets.tolist() == offsets.tolist() and len(short_ids) == num_short(vocab_size)
    long = lead.values >= len(short_ids)
    for i, (first, last) in enumerate(itertools.pairwise(offsets)):
        assert rest.offsets[i + 1] - rest.offsets[i] == long[first:last].sum()


def test_the_most_frequent_ids_take_one_byte():
    ids = np.repeat(np.arange(30522, dtype=np.uint32), 1 + np.arange(30522) % 7 * (np.arange(30522) < 140))
    lead, rest, short_ids = encode(Lists(ids, np.array([0, len(ids)], np.int32)), 30522)
    counts = np.bincount(ids, minlength=30522)
    assert len(short_ids) == 256 - 120, "30,522 ids are 120 times 256"
    assert counts[short_ids].min() >= np.delete(counts, short_ids).max()
    assert len(lead.values) == len(ids) and len(rest.values) == len(ids) - counts[short_ids].sum()


def bytes_as_json(sample, words):
    """Of a row in the original's epoch_N.json: it notes one token of each row as masked, and masks none."""
    tokens = [words[i] for i in sample.input_ids.tolist()]
    row = {
        "tokens": tokens,
        "segment_ids": [0] * sample.segment_b + [1] * (len(tokens) - sample.segment_b),
        "is_random_next": False,
        "masked_lm_positions": [len(tokens) // 2],
        "masked_lm_labels": [tokens[len(tokens) // 2]],
    }
    return len(json.dumps(row)) + 1


@pytest.mark.parametrize(
    ("text", "vocabulary", "most", "times"),
    [
        pytest.param("en/wikinews_en.sent.txt.gz", "bert-base-uncased", 180, 7.5, marks=pytest.mark.slow),
        ("en/enwiki_3mb.sent.txt.gz", "bert-base-uncased", 180, 7.5),
        ("zh/zhwiki_20mb.txt.gz", "bert-base-chinese", 165, 8.4),
    ],
)
def test_bytes_of_real_text_against_the_original_json(shared_data, tmp_path, text, vocabulary, most, times):
    """The original writes its file anew for each of its epochs, three by default."""
    lines = gzip.open(shared_data / "corpus" / text, "rt", encoding="utf-8").read().splitlines()
    (tmp_path / "text.txt").write_text("\n".join(lines[:40_000]), encoding="utf-8")
    tokenizer = load_tokenizer(shared_data / "vocab" / vocabulary)
    run(tmp_path / "text.txt", tmp_path, tokenizer, recipe={"max_seq_length": 128})
    dataset = TokenDataset.open(tmp_path / "out")
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    sample = dataset.fetch(range(0, len(dataset), 50))
    as_json = np.mean([bytes_as_json(row, words) for row in sample])
    here = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.arrow")) / len(dataset)
    print(f"\n{text}: {here:.0f} bytes a row, {as_json:.0f} as JSON: {as_json / here:.1f} times")
    assert here < most and as_json / here > times
