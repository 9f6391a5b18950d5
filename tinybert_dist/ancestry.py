"""The runs behind a model, with their options, data and scores: lineage.json and the folders it leads to."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinybert_dist.config import read_yaml
from tinybert_dist.files import read_json
from tinybert_dist.lineage import lineage_of, travelling

DID = {
    "pretrain": "masked-LM pretraining",
    "general_distill": "general distillation",
    "finetune_teacher": "fine-tuning on labels",
    "task_distill_intermediate": "task distillation, step 1",
    "task_distill_prediction": "task distillation, step 2",
    "export": "export",
}
# options that lead to the models a run was made from, and to its text
MODELS = ("student_model", "teacher_model")
DATA = ("data_dir", "train_file_path", "pretrain_file_path", "unlabelled_file_path")


def ancestry(model: str | Path) -> list[dict[str, Any]]:
    """One row per run: the model's own, those it goes back to, then its teacher's; each with what is known.

    The chain is that of lineage.json. Options, data, steps and score come from a run's folder, where it is
    still in its place with those weights; for a hub name or somebody else's folder its name is all.
    """
    return list(_rows(lineage_of(model), Path(model), set()))


def run_options(folder: str | Path) -> dict[str, Any]:
    """The options of the run that made a folder; empty if none did."""
    file = Path(folder) / "config.yaml"
    return read_yaml(file, str(file)) if file.is_file() and (Path(folder) / "run.json").is_file() else {}


def trained_metrics(folder: str | Path) -> dict[str, float]:
    """What a model scored when it was trained, `<split> <metric>`; empty without eval_results.json."""
    file = Path(folder) / "eval_results.json"
    splits = read_json(file)["splits"] if file.is_file() else {}
    return {f"{split} {name}": value for split, metrics in splits.items() for name, value in metrics.items()}


def _rows(record: Mapping[str, Any], folder: Path, seen: set[str]) -> Iterator[dict[str, Any]]:
    weights = record.get("weights_sha256") or record["name"]
    if weights in seen:  # a teacher taught several steps
        return
    seen.add(weights)
    is_there = lineage_of(folder).get("weights_sha256") == weights
    options = run_options(folder) if is_there else {}
    made_from = record.get("made_from", {})
    yield {
        "model": record["name"],
        "made by": DID.get(record.get("stage", ""), record.get("stage")),
        **{option: made_from.get(option, {}).get("name") for option in MODELS},
        "data": ", ".join(_data(options, folder)) or None,
        "steps": _steps(folder) if options else None,
        "batch": options.get("train_batch_size"),
        "learning rate": options.get("learning_rate"),
        "score": _score(folder) if options else None,
        "weights": record.get("weights_sha256", "")[:16] or None,
    }
    for option in MODELS:
        # of a hub name, or the config of a new student, no more is known than stands in this row
        if made_from.get(option, {}).get("weights_sha256"):
            before = options.get(option) or folder / "pretrained"
            yield from _rows(made_from[option], Path(before), seen)


def _data(options: Mapping[str, Any], folder: Path) -> Iterator[str]:
    identity = read_json(folder / "run.json")["identity"] if options else {}
    for name in DATA:
        # the identity of a run holds the fingerprint of what it has read
        if options.get(name) and identity.get(name):
            yield f"{travelling(Path(options[name]))} ({identity[name]})"


def _steps(folder: Path) -> int | None:
    file = folder / "outcome.json"
    return read_json(file)["step"] if file.is_file() else None


def _score(folder: Path) -> str | None:
    file = folder / "eval_results.json"
    if not file.is_file():
        return None
    result = read_json(file)
    return f"{result['selection_metric']} {result['score']:.4f} ({next(iter(result['splits']), 'dev')})"
