"""A stage's options and what they lead to, each opened once and only when a check asks for it."""

import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import UserError
from tinybert_dist.data.augment_files import Source as AugmentSource
from tinybert_dist.data.augment_files import glue_source, path_source
from tinybert_dist.data.examples import count_labels, read_examples
from tinybert_dist.data.glue import TaskSpec
from tinybert_dist.data.shards import shards_of
from tinybert_dist.data.task_files import read_records
from tinybert_dist.data.tasks import find_task, labels_in_data, split_paths
from tinybert_dist.data.text import BadRecords
from tinybert_dist.models import is_named_student, load_config, student_config
from tinybert_dist.preflight.earlier import Earlier
from tinybert_dist.preflight.findings import once
from tinybert_dist.preflight.models import Model, Planned, Stored
from tinybert_dist.training.student import is_config_only

COUNTED_BYTES = 8 << 20  # labels of larger train files are not counted: that is the stage's work
SAMPLE_ROWS = 5000


@dataclass(frozen=True)
class Task:
    """Data of a task. labels_seen: in a train file too large to know them all; spec.labels is () then."""

    folder: Path
    spec: TaskSpec
    paths: dict[str, Path]
    labels_seen: tuple[str, ...] = ()


@dataclass
class FirstRows:
    """What the first SAMPLE_ROWS rows of a split hold, up to its first mistake."""

    texts: list[tuple[str, ...]]
    labels: list[float | None]
    bad: BadRecords
    mistake: UserError | None = None


class Subject:
    """What is checked. Properties raise UserError for mistakes, NotYet for what earlier steps will make."""

    def __init__(self, stage: str, config: Any, earlier: Earlier | None = None, is_launched: bool = True):
        self.stage, self.config = stage, config
        self.earlier = earlier or Earlier()
        self.is_launched = is_launched
        """whether this is the stage itself, as its launcher started it, and not the doctor before it"""

    def has(self, *names: str) -> bool:
        """Whether the stage takes these options and they are given."""
        return all(getattr(self.config, name, None) for name in names)

    @once
    def teacher(self) -> Model | None:
        """The model that teaches, is augmented with, or is fine-tuned."""
        option = "pretrained_bert_model" if self.stage == "augment" else "teacher_model"
        return self._model(getattr(self.config, option)) if self.has(option) else None

    @once
    def student(self) -> Model | None:
        """The model that learns, or is scored."""
        name = getattr(self.config, "student_model", None)
        if not name:
            return None
        if is_named_student(name) or name.endswith(".json") or is_config_only(Path(name)):
            path = Path(name) / "config.json" if is_config_only(Path(name)) else name
            return Planned(
                name, lambda: student_config(path, self._taught_by().config), self._taught_by().tokenizer
            )
        return self._model(name)

    @once
    def trained(self) -> Model:
        """The model that training changes."""
        if self.stage != "finetune_teacher":
            return self.student
        if self.teacher is not None:
            return self.teacher
        file, vocabulary = self.config.from_scratch, self.vocabulary

        def config():
            tokenizer = vocabulary.tokenizer(self.config.do_lower_case, None)
            return load_config(file, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)

        return Planned(file, config, vocabulary.tokenizer)

    @once
    def vocabulary(self) -> Model:
        """Whose tokenizer cuts the text."""
        if self.has("tokenizer"):
            return self._model(self.config.tokenizer)
        return self.teacher or self.student

    @once
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """As the stage loads it."""
        lower = getattr(self.config, "do_lower_case", None)
        return self.vocabulary.tokenizer(lower, self.config.max_seq_length)

    @once
    def task(self) -> Task:
        """Folder, columns, files and labels of --data_dir."""
        config = self.config
        self.earlier.require_written(config.data_dir)
        folder, spec = find_task(config)
        options = config
        if config.aug_train and self.earlier.augments(folder):
            options = copy.copy(config)
            options.aug_train = False
        splits = getattr(config, "splits", None) or ["train", "dev"]
        paths = split_paths(folder, spec, options, splits)
        if spec.mode == "regression" or spec.labels:
            return Task(folder, spec, paths)
        train = folder / spec.train_file
        size_bytes = sum(file.stat().st_size for file in shards_of(train)) if train.exists() else 0
        if size_bytes > COUNTED_BYTES:
            return Task(folder, spec, paths, tuple(count_labels(train, spec, SAMPLE_ROWS)))
        return Task(folder, replace(spec, labels=labels_in_data(folder, spec, config)), paths)

    @once
    def first_rows(self) -> dict[str, FirstRows]:
        """Of every split of the task, as the stage reads them."""
        return {split: self._read_first(path, split) for split, path in self.task.paths.items()}

    def _read_first(self, path: Path, split: str) -> FirstRows:
        spec = self.task.spec
        found = FirstRows([], [], BadRecords(self.config.on_bad_record))
        try:
            if self.task.labels_seen:
                for record in islice(read_records(path, spec, found.bad, split), SAMPLE_ROWS):
                    found.texts.append(tuple(record.texts))
            else:
                for _, row in islice(read_examples(path, spec, found.bad, split), SAMPLE_ROWS):
                    found.texts.append((row.text,) if row.text_pair is None else (row.text, row.text_pair))
                    found.labels.append(row.label)
        except UserError as mistake:
            found.mistake = mistake
        return found

    @once
    def augmented(self) -> AugmentSource:
        """What augment reads."""
        config = self.config
        self.earlier.require_written(config.data_path or config.glue_dir)
        if not config.data_path:
            return glue_source(str(config.glue_dir), str(config.task_name))
        columns = (config.text_column, config.text_pair_column, config.label_column)
        return path_source(config.data_path, *columns, config.unlabelled)

    def _model(self, name: str) -> Model:
        if (planned := self.earlier.model(name)) is not None:
            return planned
        self.earlier.require_written(name)
        return Stored(name)

    def _taught_by(self) -> Model:
        if self.teacher is None:
            raise UserError("a new student needs --teacher_model: its vocabulary is the teacher's")
        return self.teacher
