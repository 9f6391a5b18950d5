"""export: a task's model -> a folder to serve: transformers, ONNX, 8-bit ONNX, each compared and described.

    config.json model.safetensors tokenizer files   what AutoModelForSequenceClassification, pipeline() load
    onnx/model.onnx  onnx/model_int8.onnx            any batch size and length; labels and limits as metadata
    README.md  export.json                           what it is and where it comes from; the measured figures

With the task's data every format is scored on it as evaluate scores; without, only their logits are compared.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_dist.ancestry import ancestry, run_options, trained_metrics
from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage, to_dict
from tinybert_dist.data.batches import Collator
from tinybert_dist.data.labels import map_labels
from tinybert_dist.data.tasks import TaskData, TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.encoders import num_positions
from tinybert_dist.export import formats, onnx_files
from tinybert_dist.export.card import export_card
from tinybert_dist.export.folder import RECORD, refuse_strangers, replacing
from tinybert_dist.files import fingerprint, read_json, write_atomic, write_json
from tinybert_dist.lineage import lineage_of
from tinybert_dist.models import (
    count_parameters,
    has_reference_head,
    label_names,
    load_classifier,
    load_config,
    load_tokenizer,
    lowers,
    require_trained_head,
    save_model,
    weights_fingerprint,
)
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.report import speed
from tinybert_dist.training.options import OPERATIONAL
from tinybert_dist.training.scoring import Scorer, by_metric
from tinybert_dist.training.strategy import start_accelerator
from tinybert_dist.training.tracking import Tracker, TrackingOptions

VERSION = 1


@dataclasses.dataclass(kw_only=True)
class ExportConfig(TaskOptions, speed.SpeedOptions, TrackingOptions, StageOptions):
    """export: model (+ task data) -> transformers folder, ONNX, int8, model card."""

    student_model: str = HfArg(aliases=["--model"], help="the classifier to export: hub name or folder")
    data_dir: str = HfArg(default="", help="the task's folder: score every format on it (default: do not)")
    splits: list[str] = dataclasses.field(
        default_factory=lambda: ["dev"], metadata={"help": "dev, test or both; the first one's score counts"}
    )
    formats: list[str] = dataclasses.field(
        default_factory=lambda: list(formats.FILES),
        metadata={"help": "what to write: transformers (always), onnx, int8"},
    )
    max_seq_length: int = HfArg(
        default=0,
        aliases=["--max_seq_len"],
        help="tokens per text at most (default: as the model was trained; else 128)",
    )
    eval_batch_size: int = HfArg(default=64, help="examples of one batch when the formats are scored")
    classifier_head: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "transformers", "reference"]},
        help="transformers: score an original checkpoint without the relu after its pooler",
    )


def run(config: ExportConfig) -> dict[str, Any]:
    """Exports, compares, measures; returns export.json. Unchanged inputs: what is on disk."""
    _check(config)
    preflight("export", config)
    output = Path(config.output_dir)
    refuse_strangers(output, Path(config.student_model))
    bad = BadRecords(config.on_bad_record)
    task = load_task(config, bad, splits=config.splits) if config.data_dir else None
    if task is not None:
        print(task.describe(), *filter(None, [bad.summary()]), sep="\n")
    model, tokenizer = _load(config, task)
    if config.dry_run:
        kinds = ", ".join(name for name in formats.FILES if name in {"transformers", *config.formats})
        print(f"export: would write {count_parameters(model):,} parameters as {kinds} into {output}")
        return {}
    key = _key(config, model, tokenizer, task)
    if (output / RECORD).is_file() and (finished := read_json(output / RECORD)).get("key") == key:
        print(describe(finished), f"export: {output} is up to date", sep="\n")
        return finished
    lengths = speed.lengths_within(config, num_positions(model.config))
    with replacing(output) as folder:
        record = {**_write(config, folder, model, tokenizer, task, lengths), "key": key}
        card = export_card(record, title=output.name, options=run_options(config.student_model))
        write_atomic(folder / "README.md", card)
        write_json(folder / RECORD, record)
    _track(config, output, record)
    print(describe(record))
    print(f"export: wrote {', '.join(record['formats'])}, README.md and {RECORD} into {output}")
    return record


def describe(record: Mapping[str, Any]) -> str:
    """One line per format."""
    lines = []
    for name, entry in record["formats"].items():
        first = entry["speed"][0]
        score = f"{record['metric']} {entry['score']:.4f}, " if "score" in entry else ""
        lines.append(
            f"  {name:<12}  {score}{entry['size_mb']:.2f} MB, {first['latency_ms']['p50']:.2f} ms for "
            f"{first['batch_size']} x {first['length_tokens']} tokens"
        )
    if "metric" not in record:
        lines.append("  not scored (no labelled --data_dir): logits were compared on made-up batches alone")
    return "\n".join(lines)


def _track(config: ExportConfig, output: Path, record: Mapping[str, Any]) -> None:
    table = formats.table(record)
    with Tracker(config, "export", output, True, to_dict(config)) as tracker:
        tracker.use_model("student_model", config.student_model)
        tracker.log_table("formats", list(table[0]), [list(row.values()) for row in table])
        tracker.summary(
            {f"{row['format']}/{name}": row[name] for row in table for name in row if name != "format"}
        )
        tracker.log_model(output, {"parameters": record["parameters"]})
        if tracker.place:
            print(f"export: wandb run in {tracker.place}")


def _check(config: ExportConfig) -> None:
    config.check()
    if unknown := [name for name in config.formats if name not in formats.FILES]:
        raise UserError(f"--formats {unknown[0]}: allowed are {', '.join(formats.FILES)}.")
    if config.eval_batch_size < 1:
        raise UserError(f"--eval_batch_size {config.eval_batch_size}: give a number of at least 1.")


def _load(config: ExportConfig, task: TaskData | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    name, mode = config.student_model, config.task_mode
    if task is not None:
        mode = task.spec.mode
    elif mode is None and load_config(name).problem_type == "regression":
        mode = "regression"
    model = load_classifier(
        name,
        labels=(task.spec.labels or None) if task is not None else None,
        problem_type="regression" if mode == "regression" else "single_label_classification",
        classifier_head=config.classifier_head,
    ).eval()
    require_trained_head(model, name)
    if has_reference_head(model):
        raise UserError(
            f"{name} scores with the original's relu head, which a transformers folder cannot express. "
            "--classifier_head transformers exports it without the relu: evaluate it that way first."
        )
    positions = num_positions(model.config)
    if not config.max_seq_length:
        config.max_seq_length = int(run_options(name).get("max_seq_length") or min(128, positions))
    if not 3 <= config.max_seq_length <= positions:
        raise UserError(f"--max_seq_length {config.max_seq_length}: this model takes 3 to {positions}.")
    tokenizer = load_tokenizer(name, do_lower_case=config.do_lower_case, max_length=config.max_seq_length)
    return model, tokenizer


def _key(
    config: ExportConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: TaskData | None
) -> str:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    for name in onnx_files.PACKAGES if set(config.formats) - {"transformers"} else ():
        versions[name] = importlib.metadata.version(name)
    options = {k: v for k, v in dataclasses.asdict(config).items() if k not in OPERATIONAL}
    made_of = [weights_fingerprint(model), model.config.to_dict(), tokenizer.backend_tokenizer.to_str()]
    origin = [ancestry(config.student_model), task and task.fingerprint]
    return fingerprint([VERSION, versions, options, made_of, origin, torch.get_num_threads()])


def _write(
    config: ExportConfig,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: TaskData | None,
    lengths: list[int],
) -> dict[str, Any]:
    """Writes every file but the card and the record, which is returned."""
    names = label_names(model.config)
    facts = {
        "labels": None if names is None else list(names),
        "problem_type": model.config.problem_type,
        "max_length": config.max_seq_length,
        "lower_case": lowers(tokenizer),
    }
    save_model(model, tokenizer, folder, card="")
    classifiers = formats.write(folder, config.formats, tokenizer, facts)
    exactness = formats.compare(classifiers, tokenizer, config.max_seq_length)
    scores = _scores(config, classifiers, model, tokenizer, task) if task is not None else {}
    timed = speed.measure_speed(
        {name: speed.of_logits(classify) for name, classify in classifiers.items()},
        config,
        lengths=lengths,
        vocab_size=len(tokenizer),
    )
    return {
        "model": Path(config.student_model).name,
        "stage": lineage_of(config.student_model).get("stage"),
        "parameters": count_parameters(model),
        **facts,
        **({"task": task.spec.name, "metric": task.spec.selection_metric} if scores and task else {}),
        "formats": {
            name: {
                "file": formats.FILES[name],
                "size_mb": round((folder / formats.FILES[name]).stat().st_size / 1e6, 3),
                **exactness[name],
                **scores.get(name, {}),
                "speed": timed[name],
            }
            for name in classifiers
        },
        "hardware": speed.hardware(torch.device("cpu")),
        "trained": trained_metrics(config.student_model),
        "ancestry": ancestry(config.student_model),
    }


def _scores(
    config: ExportConfig,
    classifiers: Mapping[str, formats.Classify],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: TaskData,
) -> dict[str, dict[str, Any]]:
    """Per format score, metrics by split and the share of texts with the prediction of the first format.

    Empty when no split has labels.
    """
    spec = task.spec
    order = None
    if spec.mode == "classification":
        order = map_labels(spec.labels, label_names(model.config), model.config.num_labels)
    collate = Collator("padded", tokenizer.pad_token_id, config.max_seq_length)
    scorer = Scorer.of(
        task, list(task.splits), tokenizer, collate, start_accelerator("no"), config.eval_batch_size, order
    )
    logits = {
        name: formats.predictions(classify, scorer, model.config.num_labels or 0)
        for name, classify in classifiers.items()
    }
    result = {}
    for name, by_split in logits.items():
        flat = scorer.scores(by_split)
        if "score" not in flat:
            return {}
        result[name] = {"score": flat["score"], "splits": by_metric(flat)}
        if spec.mode == "classification":
            theirs = logits["transformers"]
            same = [by_split[split].argmax(1) == theirs[split].argmax(1) for split in by_split]
            result[name]["agreement"] = round(float(np.concatenate(same).mean()), 4)
    return result


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, ExportConfig, argv)


if __name__ == "__main__":
    main()
