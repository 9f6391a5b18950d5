"""Word vectors: the format, and whether the words of the texts are among them."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tinybert_dist.config import UserError
from tinybert_dist.data.segmenters import SEGMENTERS
from tinybert_dist.data.text import BadRecords, open_binary
from tinybert_dist.data.word_vectors import WordVectors
from tinybert_dist.models import lowers
from tinybert_dist.preflight.findings import Finding, ok, warning
from tinybert_dist.preflight.subject import Subject

FORMAT_ROWS = 100
LOOKED_AT_WORDS, LOOKED_AT_ROWS = 200, 50_000
MIN_KNOWN_PCT = 20.0


def check_vectors(subject: Subject) -> Iterator[Finding]:
    """The first rows are words with numbers; words of the texts are found among the frequent ones."""
    config = subject.config
    if not config.glove_embs:
        return
    path = Path(config.glove_embs)
    if not path.is_file():
        raise UserError(f"--glove_embs {path}: no such file. Give a GloVe text file (word v1 ... vD).")
    WordVectors.read(path, BadRecords(config.on_bad_record), max_rows=FORMAT_ROWS)
    words = _words_of_texts(subject)
    if not words:
        return
    with open_binary(path) as file:
        known = {line.split(b" ", 1)[0].decode("utf-8", "replace") for line in islice(file, LOOKED_AT_ROWS)}
    found = [word for word in words if word in known or word.lower() in known]
    pct = 100 * len(found) / len(words)
    yield ok(f"{path}: has {pct:.0f} % of the first {len(words)} words of the texts")
    if pct < MIN_KNOWN_PCT:
        missing = [word for word in words if word not in found][:3]
        cased = [word for word in words if word.title() in known or word.upper() in known]
        hint = "they are of another case" if len(cased) > len(words) / 2 else "they are of another language"
        yield warning(
            f"--glove_embs {path} has {pct:.0f} % of the words of {subject.augmented.file} "
            f"(not {', '.join(missing)}): {hint}.",
            "Give vectors of the language of the text, lower-cased ones for a model that lower-cases.",
        )


def _words_of_texts(subject: Subject) -> list[str]:
    config = subject.config
    rows = subject.augmented.rows(BadRecords("skip"))
    segmenter = SEGMENTERS[config.segmenter](lowers(subject.tokenizer))
    words: dict[str, None] = {}
    for row in islice(rows.rows, LOOKED_AT_WORDS):
        for column in rows.text_columns:
            split = segmenter.split(row[column])
            words |= dict.fromkeys(split.words[i] for i in split.eligible)
    return list(words)[:LOOKED_AT_WORDS]
