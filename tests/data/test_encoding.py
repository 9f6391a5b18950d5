import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from tinybert_dist.config import UserError
from tinybert_dist.data import encoding
from tinybert_dist.data.encoding import Example, Origin, encode
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords

REFERENCE = Path(__file__).resolve().parents[1] / "fixtures" / "reference" / "sst2_dev64_features.npz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return BertTokenizerFast.from_pretrained(folder)


def words(*numbers):
    return " ".join(f"w{i}" for i in numbers)


def rows_of(dataset):
    return [([WORDS[i] for i in s.input_ids], s.segment_b) for s in dataset.fetch(range(len(dataset)))]


def test_equals_the_reference_features(shared_data):
    folder = shared_data / "vocab" / "bert-base-uncased"
    bert = BertTokenizerFast.from_pretrained(folder, do_lower_case=True)
    options = TaskOptions(data_dir=str(shared_data / "glue" / "SST-2"), task_name="SST-2")
    data = load_task(options, BadRecords("error"), ("dev",))
    dataset = encode(data.splits["dev"][:64], bert, 64)
    ids, mask, segments = (np.zeros((64, 64), np.int64) for _ in range(3))
    for sample in dataset.fetch(range(64)):
        ids[sample.row, : len(sample.input_ids)] = sample.input_ids
        mask[sample.row, : len(sample.input_ids)] = 1
        segments[sample.row, sample.segment_b : len(sample.input_ids)] = 1
    expected = np.load(REFERENCE)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["input_mask"])
    np.testing.assert_array_equal(segments, expected["segment_ids"])
    np.testing.assert_array_equal(dataset.labels, expected["label_id"])
    np.testing.assert_array_equal(dataset.lengths, expected["seq_length"])


def test_pairs_and_labels(tokenizer):
    dataset = encode(
        [Example(words(1, 2), words(3), 1.0), Example(words(4), words(5, 6), None)], tokenizer, 16
    )
    assert rows_of(dataset) == [
        (["[CLS]", "w1", "w2", "[SEP]", "w3", "[SEP]"], 4),
        (["[CLS]", "w4", "[SEP]", "w5", "w6", "[SEP]"], 3),
    ]
    assert dataset.labels[0] == 1.0 and np.isnan(dataset.labels[1])
    single = encode([Example(words(1, 2), None, None)], tokenizer, 16)
    assert rows_of(single) == [(["[CLS]", "w1", "w2", "[SEP]"], 4)] and single.labels is None


def test_the_longer_text_is_cut_first_and_the_cut_is_reported(tokenizer, caplog):
    long = Example(words(1, 2, 3, 4, 5, 6), words(7, 8), 0.0)
    origins = Origin(Path("train.tsv"), np.array([5, 9, 12]))
    with caplog.at_level(logging.WARNING):
        dataset = encode([Example("w1", "w2", 0.0), long, long], tokenizer, 8, origins)
    assert rows_of(dataset)[1] == (["[CLS]", "w1", "w2", "w3", "[SEP]", "w7", "w8", "[SEP]"], 5)
    assert "2 of 3 examples (66.7 %) cut to 8 tokens, first train.tsv:9" in caplog.text
    caplog.clear()
    encode([long], tokenizer, 11)
    assert caplog.text == ""


def test_segments_without_type_ids():
    # as RoBERTa: two separators between the texts, type ids all 0
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [SEP] $B:0 [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]")
    dataset = encode([Example("w1", "w2 w3", None)], fast, 16)
    assert rows_of(dataset) == [(["[CLS]", "w1", "[SEP]", "[SEP]", "w2", "w3", "[SEP]"], 4)]


def test_second_text_without_tokens_keeps_its_separator(tokenizer):
    # a zero-width space is text to strip(), and nothing to the tokenizer
    dataset = encode([Example("w1", "\u200b", None), Example("w1", "w2", None)], tokenizer, 16)
    assert rows_of(dataset)[0] == (["[CLS]", "w1", "[SEP]", "[SEP]"], 3)


def test_pieces_of_the_list_do_not_matter(tokenizer, monkeypatch):
    examples = [Example(words(*range(i % 7 + 1)), words(i % 20), float(i % 2)) for i in range(50)]
    whole = encode(examples, tokenizer, 9)
    monkeypatch.setattr(encoding, "ROWS_PER_CALL", 7)
    assert rows_of(encode(examples, tokenizer, 9)) == rows_of(whole)
    assert len(whole) == 50 and len(encode([], tokenizer, 9)) == 0


def test_no_room_for_text(tokenizer):
    with pytest.raises(UserError, match="--max_seq_length 3: 3 special tokens"):
        encode([Example("w1", "w2", None)], tokenizer, 3)
