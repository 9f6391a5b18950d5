"""Training rows of a task as memory-mapped token shards: written once in bounded memory, then reused.

The folder holds one `rows-<key>`. The key stands for the content of the files, the tokenizer and the options
that decide the rows, so that changed data are tokenised anew and unchanged ones never again.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tinybert_dist.config import UserError
from tinybert_dist.data.encoding import Example, encode_rows, warn_of_cuts
from tinybert_dist.data.examples import Place, read_examples, read_unlabelled
from tinybert_dist.data.glue import TaskSpec
from tinybert_dist.data.shards import shards_of
from tinybert_dist.data.tasks import (
    NO_EXAMPLE,
    TaskData,
    TaskOptions,
    content_of,
    describe_split,
    split_paths,
)
from tinybert_dist.data.text import BadRecords, OnRead
from tinybert_dist.data.token_writer import TokenWriter
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.files import fingerprint

VERSION = 1  # raise it when the same files would give other rows
BAR_ABOVE_BYTES = 8 << 20


class TrainingRows(NamedTuple):
    """What a model trains on: labelled rows, then the unlabelled ones.

    sources: the files of each, to compare content by; num_tokenized: rows that were tokenised just now.
    """

    dataset: TokenDataset
    sources: dict[str, list[tuple[str, str]]]
    num_tokenized: int
    description: str


def prepare_rows(
    options: TaskOptions,
    task: TaskData,
    tokenizer: Any,
    folder: Path,
    bad: BadRecords,
    with_unlabelled: bool = True,
) -> TrainingRows:
    """Tokenises train (or train_aug) and the unlabelled text into `folder`, unless that was done before.

    task: of load_task. What is passed over goes to `bad`, also what an earlier call passed over. Raises
    UserError for bad records, and when a file has no usable row.
    """
    spec = task.spec
    paths = split_paths(task.folder, spec, options, ["train"])
    if with_unlabelled and options.unlabelled_file_path is not None:
        paths["unlabelled"] = unlabelled = Path(options.unlabelled_file_path)
        if not unlabelled.exists():
            raise UserError(f"--unlabelled_file_path {unlabelled}: no such file or folder.")
    sources = {split: content_of(path) for split, path in paths.items()}
    key = fingerprint(
        [VERSION, sources, dataclasses.asdict(spec), options.max_seq_length, _rules(tokenizer), bad.policy]
    )
    rows_folder, num_tokenized = folder / f"rows-{key}", 0
    dataset = _open(rows_folder)
    if dataset is None:
        _build(rows_folder, paths, spec, tokenizer, options.max_seq_length, bad.policy)
        dataset = TokenDataset.open(rows_folder)
        num_tokenized = len(dataset)
        _remove_others(rows_folder)
    header = dataset.header
    bad.counts.update(header["bad_counts"])
    bad.first = {**header["bad_first"], **bad.first}
    if header["num_cut"]:
        warn_of_cuts(header["num_cut"], len(dataset), options.max_seq_length, header["first_cut"])
    lines = [describe_split(split, paths[split], spec, counts) for split, counts in header["counts"].items()]
    new = f"{num_tokenized:,} rows tokenised now" if num_tokenized else "all rows tokenised before"
    return TrainingRows(dataset, sources, num_tokenized, "\n".join([*lines, f"  {new}"]))


def _open(folder: Path) -> TokenDataset | None:
    if not folder.is_dir():
        return None
    try:
        # every byte is read once a start: a flipped bit would be learned from without a word
        return TokenDataset.open(folder, verify=True)
    except UserError as error:
        print(f"note: {error} Its rows are tokenised again.", file=sys.stderr)
        return None


def _build(
    folder: Path, paths: dict[str, Path], spec: TaskSpec, tokenizer: Any, max_seq_length: int, policy: str
) -> None:
    """Writes `folder`, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    bad = BadRecords("skip" if policy == "skip" else "error")
    counts: dict[str, Counter[str]] = {split: Counter() for split in paths}
    header: dict[str, Any] = {"kind": "task", "counts": counts, "num_cut": 0, "first_cut": ""}
    num_bytes = sum(file.stat().st_size for path in paths.values() for file in shards_of(path))
    bar = tqdm(
        total=num_bytes, unit="B", unit_scale=True, desc="tokenise",
        disable=None if num_bytes > BAR_ABOVE_BYTES else True,
    )  # fmt: skip
    try:
        with bar, TokenWriter(temporary, vocab_size=len(tokenizer), header=header) as writer:
            for split, path in paths.items():
                examples = _examples(split, path, spec, bad, bar.update)
                for place, row in encode_rows(examples, tokenizer, max_seq_length):
                    writer.add(row.input_ids, row.segment_b, row.label)
                    counts[split][spec.class_name(row.label)] += 1
                    if row.is_cut:
                        header["first_cut"] = header["first_cut"] or _shown(str(place))
                        header["num_cut"] += 1
                if not counts[split]:
                    raise UserError(f"{path}: {NO_EXAMPLE}")
            header["bad_counts"] = bad.counts
            header["bad_first"] = {kind: _shown(place) for kind, place in bad.first.items()}
        shutil.rmtree(folder, ignore_errors=True)  # what stands there is damaged
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _examples(
    split: str, path: Path, spec: TaskSpec, bad: BadRecords, on_read: OnRead
) -> Iterator[tuple[Place, Example]]:
    if split == "unlabelled":
        return read_unlabelled(path, spec, bad, on_read)
    return read_examples(path, spec, bad, split, on_read)


def _rules(tokenizer: Any) -> str:
    """What decides the ids of a text; truncation and padding are set by every call anew."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
    return fingerprint(
        parts and {name: parts[name] for name in parts if name not in {"truncation", "padding"}}
    )


def _shown(place: str) -> str:
    # no folder of this machine in what is written
    return Path(place).name


def _remove_others(folder: Path) -> None:
    for path in folder.parent.iterdir():
        if path != folder and path.name.lstrip(".").startswith("rows-"):
            shutil.rmtree(path, ignore_errors=True)
