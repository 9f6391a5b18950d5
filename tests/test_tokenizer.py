"""Tokenizers of model folders: lower case, lengths, bad vocabularies."""

import pytest
from model_folders import tiny_tokenizer

from tinybert_dist import models
from tinybert_dist.config import UserError

SENTENCE = "Hello \u00c9cole WORLD, unaffable \u6211\u7231 BERT!"


@pytest.mark.parametrize(
    ("name", "lower"), [("bert-base-uncased", True), ("bert-base-cased", False), ("bert-base-chinese", True)]
)
def test_vocab_only_folder_tokenises_as_wordpiece_should(shared_data, tmp_path, name, lower):
    from tokenizers import BertWordPieceTokenizer

    vocab = shared_data / "vocab" / name / "vocab.txt"
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    tokenizer = models.load_tokenizer(tmp_path)
    independent = BertWordPieceTokenizer(str(vocab), lowercase=lower, strip_accents=lower)
    expected = independent.encode(SENTENCE, "second One")
    encoded = tokenizer(SENTENCE, "second One")
    assert encoded["input_ids"] == expected.ids and encoded["token_type_ids"] == expected.type_ids
    assert models.lowers(tokenizer) is lower
    assert len(tokenizer) == vocab.read_bytes().count(b"\n")
    other = models.load_tokenizer(tmp_path, do_lower_case=not lower)
    assert models.lowers(other) is not lower
    if name != "bert-base-chinese":
        assert other(SENTENCE)["input_ids"] != tokenizer(SENTENCE)["input_ids"]


def test_contradicting_lower_case_flag(tmp_path):
    folder = tmp_path / "t"
    tiny_tokenizer(tmp_path).save_pretrained(folder)
    assert models.lowers(models.load_tokenizer(folder, do_lower_case=True))
    with pytest.raises(
        UserError, match="do_lower_case is False on the command line, but this tokenizer lower-cases"
    ):
        models.load_tokenizer(folder, do_lower_case=False)
    vocabulary = tmp_path / "vocabulary"
    (vocabulary / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 77}')
    assert not models.lowers(models.load_tokenizer(vocabulary))
    assert models.load_tokenizer(vocabulary).model_max_length == 77
    with pytest.raises(UserError, match="keeps capitals"):
        models.load_tokenizer(vocabulary, do_lower_case=True)


def test_model_max_length_comes_from_the_positions(student_folder):
    assert models.load_tokenizer(student_folder).model_max_length == 32
    assert models.load_tokenizer(student_folder, max_length=20).model_max_length == 20


def test_bad_vocabularies_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nword\n")
    with pytest.raises(UserError, match=r"vocab.txt: no \[SEP\], \[MASK\]"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        models.load_tokenizer(tmp_path)
