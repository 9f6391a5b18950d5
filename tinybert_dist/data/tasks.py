"""Task data: from a folder of GLUE, plain text or table files to labelled examples and token rows."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinybert_dist.config import HfArg, UserError
from tinybert_dist.data.encoding import Example, Origin
from tinybert_dist.data.examples import count_labels, read_examples
from tinybert_dist.data.glue import STSB_METRICS, TaskSpec, glue_task, is_glue
from tinybert_dist.data.labels import all_fractional, canonical_label, find_labels
from tinybert_dist.data.shards import MANIFEST, shards_of
from tinybert_dist.data.task_files import find_splits, table_layout, text_layout
from tinybert_dist.data.text import BadRecords, format_suffix
from tinybert_dist.files import fingerprint, sha256_of

logger = logging.getLogger(__name__)

NO_EXAMPLE = "no usable example. Check the file and the rows reported above."


@dataclasses.dataclass(kw_only=True)
class TaskOptions:
    """Where the task's data is and what its columns mean."""

    data_dir: str = HfArg(help="folder with train, dev and test files or folders (GLUE, text, or tables)")
    task_name: str | None = HfArg(default=None, help="GLUE task, or any name for data of your own")
    task_mode: str | None = HfArg(
        default=None,
        help="what the labels are (default: what the GLUE task says, else classification)",
        metadata={"choices": ["classification", "regression"]},
    )
    num_labels: int | None = HfArg(default=None, help="number of classes; checked against the data")
    text_column: str | None = HfArg(default=None, help="column of the text in a table")
    text_pair_column: str | None = HfArg(default=None, help="column of the second text in a table")
    label_column: str | None = HfArg(default=None, help="column of the label in a table")
    labels: list[str] | None = dataclasses.field(
        default=None, metadata={"help": "the classes in order (default: those in the train file)"}
    )
    max_seq_length: int = HfArg(
        default=128, aliases=["--max_seq_len"], help="tokens per example, [CLS] and [SEP] included"
    )
    do_lower_case: bool | None = HfArg(
        default=None,
        help="lower-case the text (default: as the tokenizer says)",
        # without these the parser wants a value after an optional bool
        metadata={"nargs": "?", "const": True},
    )
    aug_train: bool = HfArg(
        default=False, help="train on train_aug.* (written by augment) instead of train.*"
    )
    unlabelled_file_path: str | None = HfArg(
        default=None,
        help="text for the teacher to label: one per line, a second text after a tab; a table; or a folder",
    )


@dataclasses.dataclass
class TaskData:
    """A task's folder, its examples by split (GLUE MNLI: dev_matched, dev_mismatched), where each stands."""

    folder: Path
    spec: TaskSpec
    splits: dict[str, list[Example]]
    origins: dict[str, Origin]
    fingerprint: str

    @property
    def dev_splits(self) -> list[str]:
        """Development splits in order; the first selects the model."""
        return [split for split in self.splits if split.startswith("dev")]

    def describe(self) -> str:
        """One line per split, with the number of examples of every class."""
        lines = [f"task {self.spec.name}: {self.spec.mode}, selected by {self.spec.selection_metric}"]
        for split, examples in self.splits.items():
            counts = Counter(self.spec.class_name(example.label) for example in examples)
            lines.append(describe_split(split, self.origins[split].file, self.spec, counts))
        return "\n".join(lines)


def find_task(options: TaskOptions) -> tuple[Path, TaskSpec]:
    """(folder, spec) of the data in data_dir; the labels of data of one's own are not known yet.

    GLUE: task_name is one of the nine and its files are in data_dir, or in data_dir/TASK. Otherwise, by the
    extension of its train (or dev, or test) file: .txt is header-less text, the rest are tables. Raises
    UserError when there are no such files, when columns are missing or ambiguous, and when options disagree.
    """
    folder = Path(options.data_dir)
    if not folder.is_dir():
        raise UserError(f"--data_dir {folder}: no such folder. Give the folder that holds the train file.")
    for candidate in _glue_folders(folder, options.task_name):
        spec = glue_task(str(options.task_name))
        names = [spec.train_file, *spec.dev_files.values(), *spec.test_files.values()]
        if any((candidate / name).is_file() for name in names):
            return candidate, _with_options(spec, options)
    files = find_splits(folder)
    path = files.get("train") or files.get("train_aug") or files.get("dev") or files.get("test")
    if path is None:
        if options.task_name is not None:
            glue_task(options.task_name)
        raise UserError(
            f"--data_dir {folder}: no train, dev (or eval, validation) or test file with extension "
            f".txt .tsv .csv .jsonl .parquet. It holds: {_names_in(folder)}."
        )
    name = options.task_name or folder.resolve().name
    file = max(shards_of(path), key=lambda shard: shard.stat().st_size)  # the first may hold no row
    is_text = format_suffix(file) == ".txt"
    named = [other for split, other in files.items() if split != "train_aug"]
    mixed = [other.name for other in named if (format_suffix(shards_of(other)[0]) == ".txt") != is_text]
    if mixed:
        raise UserError(
            f"--data_dir {folder}: {path.name} and {', '.join(mixed)} are laid out differently. "
            "Use header-less .txt for all, or tables for all."
        )
    columns = (options.text_column, options.text_pair_column, options.label_column)
    if is_text and any(columns):
        raise UserError(f"{file} has no header, so --text_column and the like cannot name its columns.")
    return folder, _with_options(
        text_layout(name, files, file) if is_text else table_layout(name, files, file, *columns), options
    )


def load_task(options: TaskOptions, bad: BadRecords, splits: Sequence[str] = ("train", "dev")) -> TaskData:
    """Reads `splits` of "train", "dev", "test" (for MNLI both dev files) or one of them by name into memory.

    What a model trains on may be larger: task_tokens.prepare_rows. `aug_train` reads train_aug for "train".
    Labels come from the task, from --labels, or from the train file (see labels.find_labels). Rows that
    cannot be used go to `bad`.
    """
    folder, spec = find_task(options)
    paths = split_paths(folder, spec, options, splits)
    if spec.mode == "classification" and not spec.labels:
        spec = dataclasses.replace(spec, labels=labels_in_data(folder, spec, options))
    data = TaskData(folder, spec, {}, {}, "")
    for split, path in paths.items():
        rows = list(read_examples(path, spec, bad, split))
        if not rows:
            raise UserError(f"{path}: {NO_EXAMPLE}")
        data.splits[split] = [example for _, example in rows]
        data.origins[split] = Origin.of(path, [place for place, _ in rows])
    sources = {split: content_of(path) for split, path in paths.items()}
    kept = {split: len(examples) for split, examples in data.splits.items()}
    data.fingerprint = fingerprint({"sources": sources, "kept": kept, "spec": dataclasses.asdict(spec)})
    return data


def split_paths(folder: Path, spec: TaskSpec, options: TaskOptions, splits: Sequence[str]) -> dict[str, Path]:
    """Where each of `splits` is, as shards_of takes it. Raises UserError when one is missing."""
    return {name: path for split in splits for name, path in _paths_of(folder, spec, split, options)}


def content_of(path: Path) -> list[tuple[str, str]]:
    """(format, sha256) of each file of a split."""
    return [(format_suffix(file), sha256_of(file)) for file in shards_of(path)]


def describe_split(split: str, path: Path, spec: TaskSpec, counts: Mapping[str, int]) -> str:
    """One line: the number of examples, and of those of every class, from `counts` by label."""
    classes = [f"{name} {counts[name]:,}" for name in spec.labels if counts.get(name)]
    shown = f" ({', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''})" if classes else ""
    return f"  {split}: {sum(counts.values()):,} examples of {path}{shown}"


def _glue_folders(folder: Path, name: str | None) -> list[Path]:
    if name is None or not is_glue(name):
        return []
    spec = glue_task(name)
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and is_glue(path.name))
    return [folder, *(path for path in inside if glue_task(path.name) == spec)]


def _with_options(spec: TaskSpec, options: TaskOptions) -> TaskSpec:
    known = is_glue(options.task_name) and bool(spec.labels or spec.mode == "regression")
    mode = options.task_mode or spec.mode
    if known and mode != spec.mode:
        raise UserError(f"--task_mode {mode}: {spec.name} is a {spec.mode} task. Leave --task_mode out.")
    labels = tuple(map(canonical_label, options.labels)) if options.labels else spec.labels
    if len(set(labels)) != len(labels):
        raise UserError(f"--labels {' '.join(labels)}: a label is named twice.")
    if known and set(labels) != set(spec.labels):
        raise UserError(
            f"--labels {' '.join(labels)}: the labels of {spec.name} are {' '.join(spec.labels)}."
        )
    if mode == "regression":
        if labels or options.num_labels not in {None, 1}:
            raise UserError("--task_mode regression has one output: leave --labels and --num_labels out.")
        if not known:
            spec = dataclasses.replace(spec, selection_metric="pearson_spearman", metrics=STSB_METRICS)
    elif labels and options.num_labels not in {None, len(labels)}:
        raise UserError(
            f"--num_labels {options.num_labels}, but {spec.name} has {len(labels)}: {', '.join(labels)}."
        )
    return dataclasses.replace(spec, mode=mode, labels=labels)


def _paths_of(folder: Path, spec: TaskSpec, split: str, options: TaskOptions) -> Iterator[tuple[str, Path]]:
    if split == "train":
        augmented = find_splits(folder).get("train_aug") if options.aug_train else None
        if options.aug_train and augmented is None:
            raise UserError(
                f"--aug_train: {folder} holds no train_aug file. Run the augment stage on it first."
            )
        if augmented and augmented.is_dir() and not (augmented / MANIFEST).is_file():
            raise UserError(f"{augmented}: no {MANIFEST}: not finished. Run the augment stage again.")
        named = {"train": augmented.name if augmented else spec.train_file}
    else:
        both = spec.dev_files | spec.test_files
        groups = {"dev": spec.dev_files, "test": spec.test_files}
        if split not in groups and split not in both:
            known = ", ".join(dict.fromkeys(["train", "dev", "test", *both]))
            raise UserError(f"split {split}: not one of {spec.name}. Known: {known}.")
        named = groups[split] if split in groups else {split: both[split]}
    missing = [name for name in named.values() if not _is_there(folder / name)]
    if missing or not named:
        wanted = ", ".join(missing) or f"a {split} file"
        raise UserError(f"--data_dir {folder}: {wanted} is missing. It holds: {_names_in(folder)}.")
    yield from ((name, folder / file) for name, file in named.items())


def labels_in_data(folder: Path, spec: TaskSpec, options: TaskOptions) -> tuple[str, ...]:
    """The classes of data of one's own, from its train file; UserError when they cannot be told."""
    # augmented rows have the labels of the rows they were made of, stray ones many times
    train = folder / spec.train_file
    if not _is_there(train):
        train = find_splits(folder).get("train_aug", train)
    if not _is_there(train):
        raise UserError(f"{train} is missing, so the labels are unknown. Name them in order with --labels.")
    counts = count_labels(train, spec)
    if options.task_mode is None and all_fractional(counts):
        some = ", ".join(list(counts)[:3])
        raise UserError(
            f"{train}: the labels are numbers with fractions ({some}). "
            "Pass --task_mode regression, or --task_mode classification if they are names of classes."
        )
    labels = find_labels(counts, options.num_labels)
    logger.info("%d labels found in %s: %s", len(labels), train, ", ".join(labels))
    return labels


def _is_there(path: Path) -> bool:
    # find_splits makes patterns only of what it has seen
    return path.exists() or "*" in path.name


def _names_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"
