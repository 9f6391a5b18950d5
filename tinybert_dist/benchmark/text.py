"""What the models are run on: rows of the user's text, or of sentences made up on the spot."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from tinybert_dist.benchmark.options import BenchmarkOptions
from tinybert_dist.config import UserError
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.stream import open_stream
from tinybert_dist.data.token_manifest import MANIFEST
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.tokenizer import SPECIAL_TOKENS, load_tokenizer
from tinybert_dist.training.corpus import require_usable

# words of an English sentence: with these a Wikipedia's lines of 27 tokens come out, a tenth above 50
MEDIAN_WORDS, SPREAD = 21, 0.55
NUM_SENTENCES, SENTENCES_PER_DOCUMENT = 4000, 20


def open_text(
    options: BenchmarkOptions, config: PreTrainedConfig
) -> tuple[TokenDataset, PreTrainedTokenizerBase]:
    """Rows and their tokenizer; config: the teacher's. Reads a little of raw text, and leaves nothing.

    Raises UserError for text without a teacher whose tokenizer cuts it, and as the stages do.
    """
    if options.train_file_path is None:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = _made_up(Path(folder), options.seed, config.vocab_size)
            return _rows(options, str(Path(folder) / "text.txt"), tokenizer), tokenizer
    if options.teacher_model is None:
        raise UserError("--train_file_path needs --teacher_model: the text is cut by its tokenizer")
    tokenizer = load_tokenizer(
        options.teacher_model, do_lower_case=options.do_lower_case, max_length=options.max_seq_length
    )
    return _rows(options, options.train_file_path, tokenizer), tokenizer


def labelled(dataset: TokenDataset, num_rows: int, num_labels: int) -> TokenDataset:
    """About `num_rows` rows spread over `dataset`, some of them several times, in memory and with labels."""
    rows = dataset.fetch(np.linspace(0, len(dataset) - 1, num_rows, dtype=np.int64))
    ids, segments = [row.input_ids.tolist() for row in rows], [row.segment_b for row in rows]
    return TokenDataset.from_rows(ids, segments, [float(i % num_labels) for i in range(num_rows)])


def _rows(options: BenchmarkOptions, path: str, tokenizer: PreTrainedTokenizerBase) -> TokenDataset:
    recipe = Recipe(options.mode, options.max_seq_length, options.seed, options.text_column)
    if (Path(path) / MANIFEST).is_file():
        dataset = TokenDataset.open(path)
        require_usable(dataset, Path(path), tokenizer, recipe)
        return dataset
    return open_stream(path, tokenizer, recipe, on_bad_record="skip").sample


def _made_up(folder: Path, seed: int, vocab_size: int) -> PreTrainedTokenizerBase:
    draw = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(vocab_size - len(SPECIAL_TOKENS))]
    (folder / "vocab.txt").write_text(_lines([*SPECIAL_TOKENS, *words]))
    lengths = np.maximum(1, np.round(draw.lognormal(np.log(MEDIAN_WORDS), SPREAD, NUM_SENTENCES))).astype(int)
    sentences = [" ".join(f"w{i}" for i in draw.integers(0, len(words), n)) for n in lengths]
    for end in range(len(sentences), 0, -SENTENCES_PER_DOCUMENT):
        sentences.insert(end, "")
    (folder / "text.txt").write_text(_lines(sentences))
    return load_tokenizer(folder)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(texts) + "\n"
