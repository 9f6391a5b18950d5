"""Are the texts and labels there, readable, and of the tokenizer's language and the length asked for?"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tinybert_dist.config import UserError
from tinybert_dist.data.augment_files import no_example
from tinybert_dist.data.corpus import MAX_UNKNOWN_PCT
from tinybert_dist.data.corpus_part import PREGENERATED_COLUMNS, Recipe
from tinybert_dist.data.examples import read_unlabelled
from tinybert_dist.data.source_files import HUB
from tinybert_dist.data.sources import Piece, Source, find_sources, kind_of, read_sentences, read_table
from tinybert_dist.data.storage import is_url
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.token_manifest import MANIFEST
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.preflight.findings import Finding, NotYet, error, ok, warning
from tinybert_dist.preflight.subject import SAMPLE_ROWS, Subject
from tinybert_dist.report.measure import read_evaluation
from tinybert_dist.training.corpus import refuse_prepared, require_usable

SAMPLE_TEXTS, SAMPLE_CHARS = 300, 5000
SAMPLED_FILES = 3
FOREIGN_PCT = 50.0
MAX_CUT_PCT = 25.0
MAX_BAD_SHARE = 0.2
FEW_VALUES = 3


def check_task_rows(subject: Subject) -> Iterator[Finding]:
    """The first rows of every split can be read, and hold texts and labels."""
    if not subject.config.data_dir:
        return  # export without data to score on
    task, policy = subject.task, subject.config.on_bad_record
    spec, facts = task.spec, []
    for split, path in task.paths.items():
        found = subject.first_rows[split]
        rows, bad = found.texts, found.bad
        if found.mistake is not None:
            raise found.mistake
        if not rows:
            yield error(f"{path}: no usable example.", "Check the file and its columns.")
            continue
        if bad.total > MAX_BAD_SHARE * (len(rows) + bad.total):
            yield warning(
                f"{path}: {bad.total} of the first {len(rows) + bad.total} rows are passed over "
                f"({bad.summary()}).",
                "Check the columns (--text_column, --label_column) and the labels (--labels).",
            )
        if spec.mode == "regression" and split == "train":
            yield from _check_numbers(path, found.labels)
        facts.append(f"{split} {len(rows):,}{'+' if len(rows) == SAMPLE_ROWS else ''} rows")
    if subject.has("unlabelled_file_path") and subject.stage == "task_distill":
        unlabelled = Path(subject.config.unlabelled_file_path)
        subject.earlier.require_written(unlabelled)
        if not unlabelled.exists():
            raise UserError(f"--unlabelled_file_path {unlabelled}: no such file or folder. Correct the path.")
        if not list(islice(read_unlabelled(unlabelled, spec, BadRecords(policy)), SAMPLE_ROWS)):
            yield error(f"--unlabelled_file_path {unlabelled}: no usable text.", "Check the file.")
    if facts:
        yield ok(f"{task.folder}: {', '.join(facts)}")


def check_task_texts(subject: Subject) -> Iterator[Finding]:
    """Task data: the tokenizer's language, and the share of texts that would be cut."""
    if not subject.config.data_dir:
        return
    paths = subject.task.paths
    split = "train" if "train" in paths else next(iter(paths))
    yield from _check_texts(subject, subject.first_rows[split].texts[:SAMPLE_TEXTS], str(paths[split]))


def check_augmented_texts(subject: Subject) -> Iterator[Finding]:
    """Data to augment: readable, of the tokenizer's language, and its words are to be had."""
    source, config = subject.augmented, subject.config
    rows = source.rows(BadRecords(config.on_bad_record))
    examples = list(islice(rows.rows, SAMPLE_ROWS))
    if not examples:
        raise no_example(source.file)
    yield ok(f"{source.file}: {len(examples):,}{'+' if len(examples) == SAMPLE_ROWS else ''} rows")
    texts = [tuple(row[column] for column in rows.text_columns) for row in examples[:SAMPLE_TEXTS]]
    yield from _check_texts(subject, texts, str(source.file), is_cut=False)


def check_corpus(subject: Subject) -> Iterator[Finding]:
    """Raw text: its files can be read and are of the tokenizer's language; token shards: they are its own."""
    config = subject.config
    path = getattr(config, "train_file_path", None) or getattr(config, "pretrain_file_path", None)
    if path is None:
        return
    subject.earlier.require_written(path)
    if getattr(config, "streaming", False):
        refuse_prepared(path)
    if (Path(path) / MANIFEST).is_file() and subject.stage != "prepare_corpus":
        recipe = Recipe(max_seq_length=_length(subject, path))
        dataset = TokenDataset.open(path)
        require_usable(dataset, Path(path), subject.tokenizer, recipe)
        yield ok(f"{path}: {len(dataset):,} prepared sequences")
        return
    if path.startswith(HUB) or (is_url(path) and not path.startswith("file://")):
        raise NotYet(f"{path} is not read before the stage starts")
    sources = find_sources(path)
    texts = list(_sample(sources, config.on_bad_record, getattr(config, "text_column", "text")))
    if not texts and len(sources) <= SAMPLED_FILES:
        raise UserError(f"{path}: no text in {len(sources)} files. Give one sentence per line.")
    yield ok(f"{path}: {len(sources):,} files, {sum(source.size_bytes for source in sources) / 1e6:,.1f} MB")
    # sentences fill sequences in the mode `pairs`: nothing is lost there
    yield from _check_texts(subject, texts, path, is_cut=getattr(config, "mode", "pairs") == "line")


def check_evaluations(subject: Subject) -> Iterator[Finding]:
    """The scores that a report compares are there."""
    for role in ("teacher", "student", "label_only"):
        models, evaluations = (getattr(subject.config, f"{role}_{what}") for what in ("model", "eval"))
        for folder in evaluations or models:
            subject.earlier.require_written(folder)
            yield ok(f"{role}: {read_evaluation(folder)['score']}")


def _length(subject: Subject, path: str) -> int:
    config = subject.config
    if path == getattr(config, "pretrain_file_path", None):
        return config.pretrain_max_seq_length or config.max_seq_length
    return config.max_seq_length


def _sample(sources: Sequence[Source], policy: str, text_column: str) -> Iterator[tuple[str]]:
    chosen = sorted({0, len(sources) // 2, len(sources) - 1})
    for source in (sources[i] for i in chosen):
        piece = Piece(source)
        if kind_of(source) == "jsonl":
            first = next(read_table(piece, BadRecords("skip")), None)
            if first is not None and PREGENERATED_COLUMNS <= first[1].keys():
                continue  # the original's epoch_N.json holds pieces, no text
        bad = BadRecords("skip" if policy == "skip" else "error")
        sentences = (text for _, text in read_sentences(piece, bad, text_column) if text)
        yield from ((text,) for text in islice(sentences, SAMPLE_TEXTS))


def _check_texts(
    subject: Subject, texts: Sequence[Sequence[str]], where: str, is_cut: bool = True
) -> Iterator[Finding]:
    if not texts:
        return
    tokenizer = subject.tokenizer
    limit = subject.config.max_seq_length or tokenizer.model_max_length
    flat = [text[:SAMPLE_CHARS] for row in texts for text in row]
    encoded = tokenizer(flat, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    total = sum(map(len, encoded))
    pct = 100 * sum(ids.count(unknown) for ids in encoded) / max(1, total) if unknown is not None else 0.0
    problem = (
        f"{pct:.0f} % of the pieces of {where} are {tokenizer.unk_token} to the vocabulary of "
        f"{subject.vocabulary.name}: probably the tokenizer of another language."
    )
    remedy = "Give a model of the language of the text."
    is_foreign = sum(map(str.isascii, flat)) < len(flat) / 2  # else a small vocabulary may be meant
    if pct > FOREIGN_PCT and is_foreign:
        yield error(problem, remedy)
    elif pct > MAX_UNKNOWN_PCT:
        yield warning(problem, remedy)
    if not is_cut:
        return
    per_row = len(texts[0])
    extra = tokenizer.num_special_tokens_to_add(pair=per_row > 1)
    lengths = [sum(map(len, encoded[i : i + per_row])) + extra for i in range(0, len(encoded), per_row)]
    cut_pct = 100 * sum(length > limit for length in lengths) / len(lengths)
    yield ok(f"{np.mean(lengths):.0f} tokens a text (95 % have at most {np.percentile(lengths, 95):.0f})")
    if cut_pct > MAX_CUT_PCT:
        yield warning(
            f"{cut_pct:.0f} % of the first {len(lengths)} texts of {where} are longer than --max_seq_length "
            f"{limit} and would be cut.",
            f"With {int(np.percentile(lengths, 95))} it is 5 %.",
        )


def _check_numbers(path: Path, labels: Sequence[float | None]) -> Iterator[Finding]:
    values = set(labels)
    if len(values) <= FEW_VALUES < len(labels):
        shown = ", ".join(f"{value:g}" for value in sorted(value for value in values if value is not None))
        yield warning(
            f"{path}: --task_mode regression, but its labels take the values {shown} only.",
            "If these are classes, leave --task_mode out.",
        )
