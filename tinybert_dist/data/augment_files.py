"""Where augmentation reads and writes: GLUE folders, lines, tables; blocks of lines that survive a kill."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tinybert_dist.config import UserError
from tinybert_dist.data.glue import TaskSpec, glue_task
from tinybert_dist.data.tables import ROW_FORMATS
from tinybert_dist.data.task_files import RawRows, find_splits, read_raw_rows, table_layout, text_layout
from tinybert_dist.data.text import COMPRESSION, BadRecords, format_suffix, read_lines
from tinybert_dist.files import fsync_folder, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to augment, its columns, and the name of what comes out."""

    file: Path
    spec: TaskSpec
    output_name: str

    def rows(self, bad: BadRecords) -> RawRows:
        """Header, text columns and rows of the file; rows of another width go to `bad`."""
        return read_raw_rows(self.file, self.spec, bad)

    def count(self, bad: BadRecords) -> int:
        """Examples of the file, every row checked, so that a bad one stops the run before it starts.

        Raises UserError for a file without examples.
        """
        found = sum(1 for _ in self.rows(bad).rows)
        if not found:
            raise UserError(f"{self.file}: holds no example, so there is nothing to augment. Check the file.")
        return found


def glue_source(glue_dir: str, task_name: str) -> Source:
    """train.tsv of a GLUE task in `glue_dir`/TASK or in `glue_dir` itself. Raises UserError if in neither."""
    spec = glue_task(task_name)
    tried = [Path(glue_dir, name, spec.train_file) for name in dict.fromkeys((task_name, spec.name, ""))]
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        places = " or ".join(map(str, tried))
        raise UserError(f"--glue_dir {glue_dir}: no {spec.train_file} of {spec.name}. Expected {places}.")
    return Source(file, spec, "train_aug.tsv")


def path_source(path: str, text: str | None, pair: str | None, label: str | None) -> Source:
    """A file of one's own, or the train file of a folder.

    Tables (CSV, TSV, JSON lines, Parquet) carry a header and come out as TSV. Any other file is text without
    header, and the commonest number of tab fields says what a line is: 1 text, 2 text and label, 3 two texts
    and label. Raises UserError for a missing file and for columns that cannot be told.
    """
    file = Path(path)
    if file.is_dir():
        splits = find_splits(file)
        if "train" not in splits:
            raise UserError(f"--data_path {path}: the folder holds no train file (train.tsv, train.txt ...).")
        file = splits["train"]
    if not file.is_file():
        raise UserError(f"--data_path {path}: no such file or folder. Give the training file.")
    stem = file.with_suffix("") if file.suffix.lower() in COMPRESSION else file
    if format_suffix(file) in ROW_FORMATS:
        spec = table_layout(file.name, {}, file, text, pair, label or text)
        return Source(file, spec, f"{stem.stem}_aug.tsv")
    return Source(file, _lines_layout(file), f"{stem.stem}_aug.txt")


def _lines_layout(file: Path) -> TaskSpec:
    widths = Counter(line.count("\t") + 1 for _, line in read_lines(file, BadRecords("skip")) if line.strip())
    if not widths:
        raise UserError(f"{file}: holds no line, so there is nothing to augment. Check the file.")
    if widths.most_common(1)[0][0] == 1:
        return TaskSpec(file.name, text_columns=(0,), label_column=0, has_header=False, num_columns=1)
    return text_layout(file.name, {}, file)


class BlockFile:
    """Lines written block by block into a hidden part file that takes its name when all are there.

    Beside it stands a state file with what is done; lines after its byte count belong to a block that
    was cut off and are dropped. A run with another fingerprint starts afresh.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        self._part = path.with_name(f".{path.name}.part")
        self._state_file = path.with_name(f".{path.name}.state.json")
        self._bytes = 0

    def finished(self) -> dict[str, Any] | None:
        """What finish() was given, if this very file is already there, whole."""
        state = self._state()
        there = state.get("finished") and self.path.is_file() and self.path.stat().st_size == state["bytes"]
        return state["progress"] if there else None

    def resume(self) -> dict[str, Any]:
        """What the last append() was given, after cutting the part file to it; {} for a new start."""
        state = self._state()
        self._bytes, progress = 0, {}
        written = self._part.stat().st_size if self._part.is_file() else -1
        if not state.get("finished") and written >= state.get("bytes", 0):
            self._bytes, progress = state.get("bytes", 0), state.get("progress", {})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._part, "ab") as file:
            file.truncate(self._bytes)
        return progress

    def append(self, lines: Sequence[str], progress: dict[str, Any]) -> None:
        """Adds a block; `progress` is what resume() gives back from then on."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8")
        with open(self._part, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(data)
        self._save(progress, finished=False)

    def finish(self, progress: dict[str, Any]) -> None:
        """Gives the part file its name."""
        os.replace(self._part, self.path)
        fsync_folder(self.path.parent)
        self._save(progress, finished=True)

    def _save(self, progress: dict[str, Any], finished: bool) -> None:
        state = {
            "fingerprint": self._fingerprint,
            "bytes": self._bytes,
            "finished": finished,
            "progress": progress,
        }
        write_json(self._state_file, state)

    def _state(self) -> dict[str, Any]:
        try:
            state = read_json(self._state_file)
        except (OSError, ValueError):
            return {}
        return state if state.get("fingerprint") == self._fingerprint else {}


def blocks(rows: Iterator[tuple[int, list[str]]], size: int) -> Iterator[list[list[str]]]:
    """The columns of the rows, `size` at a time."""
    while block := [columns for _, columns in islice(rows, size)]:
        yield block
