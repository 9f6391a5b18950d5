"""What augmentation reads: GLUE folders, lines, tables, with labels or without."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import TaskSpec, glue_task
from tinybert_dist.data.tables import ROW_FORMATS
from tinybert_dist.data.task_files import find_splits, read_raw_rows, table_layout, text_layout
from tinybert_dist.data.text import COMPRESSION, BadRecords, format_suffix, read_lines


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a file: names of its columns (None: no header), which hold text and which the label."""

    columns: list[str] | None
    text_columns: tuple[int, ...]
    label_column: int | None
    rows: Iterator[list[str]]

    def names(self) -> list[str]:
        """The columns' names; without a header text, text_pair, label, and column_N for any other."""
        if self.columns is not None:
            return self.columns
        names = [f"column_{c + 1}" for c in range(len(next(self.rows)))]
        if self.label_column is not None:
            names[self.label_column] = "label"
        for column, name in zip(self.text_columns, ("text", "text_pair"), strict=False):
            names[column] = name
        return names


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to augment, its columns, and the name of what comes out (without extension)."""

    file: Path
    spec: TaskSpec
    output_stem: str
    output_suffix: str
    texts_only: bool = False

    def rows(self, bad: BadRecords, one_line: bool = True) -> Rows:
        """The rows of the file, or their texts alone; rows of another width go to `bad`.

        `one_line`: tabs and newlines in the fields of a table become spaces.
        """
        raw = read_raw_rows(self.file, self.spec, bad, one_line=one_line)
        rows = (columns for _, columns in raw.rows)
        if not self.texts_only:
            return Rows(
                raw.header.split("\t") if raw.header else None, raw.text_columns, raw.label_column, rows
            )
        texts = ([columns[c] for c in raw.text_columns] for columns in rows)
        return Rows(None, tuple(range(len(raw.text_columns))), None, texts)

    def count(self, bad: BadRecords) -> int:
        """Examples of the file, every row checked, so that a bad one stops the run before it starts.

        Raises UserError for a file without examples.
        """
        found = sum(1 for _ in self.rows(bad).rows)
        if not found:
            raise no_example(self.file)
        return found


def no_example(file: Path) -> UserError:
    """What is said of a file without any."""
    return UserError(f"{file}: holds no example, so there is nothing to augment. Check the file.")


def glue_source(glue_dir: str, task_name: str) -> Source:
    """train.tsv of a GLUE task in `glue_dir`/TASK or in `glue_dir` itself. Raises UserError if in neither."""
    spec = glue_task(task_name)
    tried = [Path(glue_dir, name, spec.train_file) for name in dict.fromkeys((task_name, spec.name, ""))]
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        places = " or ".join(map(str, tried))
        raise UserError(f"--glue_dir {glue_dir}: no {spec.train_file} of {spec.name}. Expected {places}.")
    return Source(file, spec, "train_aug", ".tsv")


def path_source(
    path: str, text: str | None, pair: str | None, label: str | None, unlabelled: bool = False
) -> Source:
    """A file of one's own, or the train file of a folder.

    Tables (CSV, TSV, JSON lines, Parquet) carry a header and come out as TSV. Any other file is text without
    header, and the commonest number of tab fields says what a line is: 1 text, 2 text and label, 3 two texts
    and label. `unlabelled`: 1 text or 2 texts, and of a table the text columns; lines of texts come out.
    Raises UserError for a missing file and for columns that cannot be told.
    """
    file = Path(path)
    if file.is_dir():
        splits = find_splits(file)
        if "train" not in splits:
            raise UserError(f"--data_path {path}: the folder holds no train file (train.tsv, train.txt ...).")
        file = splits["train"]
    if not file.is_file():
        raise UserError(
            f"--data_path {path}: no such file ({file.name}); one file is augmented. Give its path."
        )
    stem = output_stem(file)
    if format_suffix(file) not in ROW_FORMATS:
        return Source(file, _lines_layout(file, unlabelled), stem, ".txt", unlabelled)
    if unlabelled and text is None:
        raise UserError(f"--unlabelled: {file} is a table. Name the column of its text with --text_column.")
    spec = table_layout(file.name, {}, file, text, pair, text if unlabelled else label or text)
    return Source(file, spec, stem, ".txt" if unlabelled else ".tsv", unlabelled)


def output_stem(file: Path) -> str:
    """What the augmented rows of a file are called, without extension."""
    return f"{(file.with_suffix('') if file.suffix.lower() in COMPRESSION else file).stem}_aug"


def _lines_layout(file: Path, unlabelled: bool) -> TaskSpec:
    widths = Counter(line.count("\t") + 1 for _, line in read_lines(file, BadRecords("skip")) if line.strip())
    if not widths:
        raise UserError(f"{file}: holds no line, so there is nothing to augment. Check the file.")
    width = widths.most_common(1)[0][0]
    if unlabelled and width > 2:
        raise UserError(
            f"--unlabelled: most lines of {file} have {width} tab-separated fields. Expected a text, or two "
            "with a tab between."
        )
    if unlabelled or width == 1:
        columns = tuple(range(width))
        return TaskSpec(file.name, text_columns=columns, label_column=0, has_header=False, num_columns=width)
    return text_layout(file.name, {}, file)


def block_size(num_examples: int) -> int:
    """Examples of a block: enough that the queries of each fill batches, few enough that a small file gives
    work to several processes and that a kill costs little."""
    return max(32, min(1024, num_examples // 64))


def cut(rows: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    """The rows, `size` at a time."""
    while block := list(islice(rows, size)):
        yield block
