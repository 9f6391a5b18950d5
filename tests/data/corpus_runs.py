"""Corpora of a small vocabulary: making them, and reading back what is in them."""

from transformers import BertTokenizerFast

from tinybert_dist.data.corpus import prepare
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.tokens import TokenDataset

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat on a mat . , ##s un ##able".split()
CLS, SEP = 2, 3


def line(i, num_words=9):
    """The i-th of 3 ** num_words different sentences."""
    return " ".join(("cat", "dog", "the mats")[i // 3**k % 3] for k in range(num_words))


def make_tokenizer(words=WORDS, lower=True):
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=lower)


def rows_of(folder):
    dataset = TokenDataset.open(folder, verify=True)
    return [(sample.input_ids.tolist(), sample.segment_b) for sample in dataset.fetch(range(len(dataset)))]


def text_of(folder):
    return [token for ids, _ in rows_of(folder) for token in ids if token not in (CLS, SEP)]


def run(texts, tmp_path, tokenizer=None, **options):
    recipe = Recipe(**{"max_seq_length": 16, **options.pop("recipe", {})})
    return prepare(
        texts, tmp_path / "out", tokenizer or make_tokenizer(), recipe=recipe, progress=False, **options
    )


def bare(text, tokenizer=None):
    return (tokenizer or make_tokenizer())(text, add_special_tokens=False)["input_ids"]
