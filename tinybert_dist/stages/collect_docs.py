"""collect_docs: a corpus and a task out of the documentation of the Python packages installed here.

Nothing is downloaded and nothing is shipped: which library does a piece of documentation come from? The
teacher gets every label; the student gets a few, and the rest of the text without labels. Writes:

    corpus/part-00000.txt ...       training text, one sentence per line, a blank line between documents
    teacher/{train,dev,test}.tsv    header `sentence<TAB>label`
    student/{train,dev,test}.tsv    the same dev and test; train holds --num_labelled rows
    student/unlabelled.txt          the other training texts, one per line
    vocab.txt                       WordPiece of the training text, lower-case
    manifest.json                   written last: counts, versions, fingerprint
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage
from tinybert_dist.data.docstring_task import Text, build_task
from tinybert_dist.data.docstrings import STANDARD_LIBRARY, Document, read_documents
from tinybert_dist.files import fingerprint, read_json, sha256_of, write_atomic, write_json

# all of them are dependencies, direct or through torch and datasets: a fresh installation has them
PACKAGES = ["python", "torch", "transformers", "pandas", "sklearn", "matplotlib", "sympy", "networkx"]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
RULES = 1  # raise when the cleaning or the split changes: older folders are then rebuilt


@dataclasses.dataclass(kw_only=True)
class CollectDocsConfig(StageOptions):
    """Which packages, how much of each, and how the texts are cut."""

    packages: list[str] = dataclasses.field(
        default_factory=lambda: list(PACKAGES),
        metadata={"help": "packages to read, one class each; python = the standard library"},
    )
    sentences_per_text: int = HfArg(
        default=3, help="consecutive sentences of one docstring that make one example"
    )
    min_words: int = HfArg(default=10, help="shorter examples are left out: they could come from anywhere")
    max_texts_per_class: int = HfArg(default=4000, help="examples kept per class, all splits together")
    max_files_per_package: int = HfArg(default=600, help="source files read per package")
    num_labelled: int = HfArg(default=2000, help="labelled training rows the student's owner has")
    vocab_size: int = HfArg(default=5000, help="word pieces in vocab.txt")
    rows_per_shard: int = HfArg(default=20000, help="sentences per corpus/part-*.txt")
    num_workers: int = HfArg(default=2, help="processes that parse source files")


def run(config: CollectDocsConfig) -> dict[str, Any]:
    """Collects, splits and writes; returns the manifest. The same options and versions again: reused."""
    check(config)
    output = Path(config.output_dir)
    key = _key(config)
    if (finished := _finished(output, key)) is not None:
        print(f"collect_docs: {output} is up to date ({_sizes(finished)}); nothing to do")
        return finished
    if config.dry_run:
        print(f"collect_docs: would read {', '.join(config.packages)} into {output}")
        return {}
    started_at = time.monotonic()
    documents = read_documents(
        config.packages, max_files=config.max_files_per_package, num_workers=config.num_workers
    )
    splits = build_task(
        documents,
        sentences_per_text=config.sentences_per_text,
        min_words=config.min_words,
        max_texts_per_class=config.max_texts_per_class,
    )
    _check_splits(splits, config)
    # the manifest is the mark of a finished folder: it goes first and comes back last
    (output / "manifest.json").unlink(missing_ok=True)
    train = splits["train"]
    for split, texts in splits.items():
        write_atomic(output / "teacher" / f"{split}.tsv", _tsv(texts))
        write_atomic(output / "student" / f"{split}.tsv", _tsv(texts[: _student_rows(split, texts, config)]))
    unlabelled = "".join(f"{' '.join(text.sentences)}\n" for text in train[config.num_labelled :])
    write_atomic(output / "student" / "unlabelled.txt", unlabelled)
    num_sentences = _write_corpus(
        output / "corpus", _training_documents(documents, splits), config.rows_per_shard
    )
    write_atomic(
        output / "vocab.txt", "".join(f"{piece}\n" for piece in train_vocabulary(train, config.vocab_size))
    )
    manifest = {
        "key": key,
        "fingerprint": fingerprint([key, sha256_of(output / "teacher" / "train.tsv")]),
        "packages": _versions(config.packages),
        "labels": sorted(config.packages),
        "texts": {split: len(texts) for split, texts in splits.items()},
        "texts_per_class": {
            split: dict(Counter(text.label for text in texts)) for split, texts in splits.items()
        },
        "labelled_rows": min(config.num_labelled, len(train)),
        "corpus_sentences": num_sentences,
        "seconds": round(time.monotonic() - started_at, 1),
    }
    write_json(output / "manifest.json", manifest)
    print(f"collect_docs: wrote {output} ({_sizes(manifest)}) in {manifest['seconds']} s")
    return manifest


def main(argv: Sequence[str] | None = None) -> Any:
    """Command line."""
    return run_stage(run, CollectDocsConfig, argv)


def check(config: CollectDocsConfig) -> None:
    """Raises UserError for options that cannot give a task."""
    if len(set(config.packages)) < 2:
        raise UserError(f"--packages {' '.join(config.packages)}: give at least two different packages.")
    for name in (
        "sentences_per_text",
        "max_texts_per_class",
        "max_files_per_package",
        "num_labelled",
        "num_workers",
    ):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: give a number of at least 1.")
    if config.vocab_size < 200:
        raise UserError(
            f"--vocab_size {config.vocab_size}: give at least 200 (letters and their ## forms need 100)."
        )


def train_vocabulary(texts: Sequence[Text], vocab_size: int) -> list[str]:
    """WordPiece pieces in id order, special tokens first, lower-cased as BertTokenizer does it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordPieceTrainer

    lines = [" ".join(text.sentences) for text in texts]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    # letters get their ids here: left to the trainer, ids (and so ties) follow the order of a hash table
    letters = sorted({letter for line in lines for letter in line.lower() if not letter.isspace()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    special += [f"##{letter}" for letter in letters if letter.isalnum()]
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    pieces = tokenizer.get_vocab()
    return sorted(pieces, key=pieces.__getitem__)


def _student_rows(split: str, texts: list[Text], config: CollectDocsConfig) -> int:
    return config.num_labelled if split == "train" else len(texts)


def _tsv(texts: Sequence[Text]) -> str:
    return "sentence\tlabel\n" + "".join(f"{' '.join(text.sentences)}\t{text.label}\n" for text in texts)


def _training_documents(documents: Sequence[Document], splits: dict[str, list[Text]]) -> list[list[str]]:
    # document order, so that neighbouring lines of the corpus belong together and can make sentence pairs
    per_module: dict[tuple[str, str], set[str]] = {}
    for text in splits["train"]:
        per_module.setdefault((text.label, text.module), set()).update(text.sentences)
    found = []
    for document in documents:
        kept = per_module.get((document.package, document.module), set())
        lines = [sentence for block in document.blocks for sentence in block if sentence in kept]
        found += [list(dict.fromkeys(lines))] if lines else []
    return found


def _write_corpus(folder: Path, documents: list[list[str]], rows_per_shard: int) -> int:
    for stale in folder.glob("part-*.txt"):
        stale.unlink()  # a shard left from other options would be read as part of this corpus
    shard: list[str] = []
    total, rows, shards = 0, 0, 0
    for i, lines in enumerate(documents):
        shard.append("\n".join(lines) + "\n")
        rows, total = rows + len(lines), total + len(lines)
        if rows >= rows_per_shard or i == len(documents) - 1:
            write_atomic(folder / f"part-{shards:05d}.txt", "\n".join(shard))
            shard, rows, shards = [], 0, shards + 1
    return total


def _check_splits(splits: dict[str, list[Text]], config: CollectDocsConfig) -> None:
    for split, texts in splits.items():
        missing = sorted(set(config.packages) - {text.label for text in texts})
        if missing:
            raise UserError(
                f"no {split} text was found for {', '.join(missing)}. "
                "Leave it out of --packages or raise --max_files_per_package."
            )


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
            continue
        try:
            versions[package] = importlib.metadata.version(DISTRIBUTIONS.get(package, package))
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def unnamed_inputs(config: CollectDocsConfig) -> dict[str, Any]:
    """Of a pipeline: the versions of the packages that are read."""
    versions = _versions(config.packages).items()
    return {"rules": RULES, **{f"package {name}": version for name, version in versions}}


def _key(config: CollectDocsConfig) -> dict[str, Any]:
    options = dataclasses.asdict(config)
    for name in ("output_dir", "on_bad_record", "dry_run", "num_workers", "seed"):
        options.pop(name)
    return {"rules": RULES, "versions": _versions(config.packages), **options}


def _finished(output: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    manifest = output / "manifest.json"
    if not manifest.is_file():
        return None
    content = read_json(manifest)
    return content if content.get("key") == key else None


def _sizes(manifest: dict[str, Any]) -> str:
    texts = ", ".join(f"{count} {split}" for split, count in manifest["texts"].items())
    return (
        f"{len(manifest['labels'])} classes, {texts} texts, {manifest['corpus_sentences']} corpus sentences"
    )


if __name__ == "__main__":
    main()
