"""report: the report card of a student: score against its teacher, size, latency, throughput, loss curves.

Reads finished folders; writes report.json, report.md and report.png into --output_dir. Scores come from
the eval_results.json of --*_eval (default: the model's own folder); size and speed are measured here.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage
from tinybert_dist.files import fingerprint, read_json, sha256_of, write_atomic, write_json
from tinybert_dist.models import load_classifier
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.report import card as report_card
from tinybert_dist.report import figures, measure


@dataclasses.dataclass(kw_only=True)
class ReportConfig(StageOptions):
    """Which models to compare, where their scores and curves are, and how speed is measured."""

    teacher_model: str = HfArg(help="folder of the teacher")
    student_model: str = HfArg(help="folder of the student")
    label_only_model: str | None = HfArg(default=None, help="folder of the student trained without a teacher")
    teacher_eval: str | None = HfArg(default=None, help="folder with the teacher's eval_results.json")
    student_eval: str | None = HfArg(default=None, help="folder with the student's eval_results.json")
    label_only_eval: str | None = HfArg(
        default=None, help="folder with the label-only model's eval_results.json"
    )
    run_folders: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "training folders whose loss curves are drawn: FOLDER or NAME=FOLDER"},
    )
    length_tokens: int = HfArg(default=32, help="tokens per text when speed is measured")
    batch_size: int = HfArg(default=32, help="texts per batch when throughput is measured")
    repeats: int = HfArg(default=50, help="times each model is timed, the models taking turns")
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: a GPU where there is one")


def run(config: ReportConfig) -> dict[str, Any]:
    """Measures, writes the three files, prints the card, returns it. Unchanged inputs: what is on disk."""
    preflight("report", config)
    folders = {role: folder for role in report_card.ROLES if (folder := getattr(config, f"{role}_model"))}
    evaluations = {
        role: measure.read_evaluation(getattr(config, f"{role}_eval") or folder)
        for role, folder in folders.items()
    }
    _check(evaluations, config)
    curves = {name: measure.read_curve(folder) for name, folder in map(_named, config.run_folders)}
    output = Path(config.output_dir)
    if config.dry_run:
        print(f"report: would compare {', '.join(folders.values())} into {output}")
        return {}
    key = _key(config, folders, evaluations, curves)
    if (finished := _finished(output, key)) is not None:
        print((output / "report.md").read_text(encoding="utf-8"))
        print(f"report: {output} is up to date")
        return finished
    device = _device(config.device)
    models = {role: load_classifier(folder) for role, folder in folders.items()}
    for model in models.values():
        model.to(device)  # type: ignore[arg-type]  # the wrapper that transformers puts around it hides the types
    speed = measure.measure_speed(
        models, length_tokens=config.length_tokens, batch_size=config.batch_size, repeats=config.repeats
    )
    entries = {
        role: {
            "folder": os.path.relpath(folders[role], output),
            "task": evaluations[role].get("task", ""),
            "metric": evaluations[role].get("selection_metric", "score"),
            "score": float(evaluations[role]["score"]),
            "splits": evaluations[role].get("splits", {}),
            **measure.describe(model, folders[role]),
            **speed[role],
        }
        for role, model in models.items()
    }
    card = report_card.build(entries, measure.hardware(device)) | {"runs": list(curves), "key": key}
    output.mkdir(parents=True, exist_ok=True)
    figures.draw(card, curves, output / "report.png")
    write_atomic(output / "report.md", report_card.to_markdown(card))
    write_json(output / "report.json", card)  # last: the mark of a finished report
    print(report_card.to_markdown(card))
    print(f"report: wrote report.json, report.md and report.png into {output}")
    return card


def outputs(config: ReportConfig) -> list[str]:
    """Of a pipeline: the three files, in a folder that may hold everything else, too."""
    return [os.path.join(config.output_dir, name) for name in ("report.json", "report.md", "report.png")]


def main(argv: Sequence[str] | None = None) -> Any:
    """Command line."""
    return run_stage(run, ReportConfig, argv)


def _check(evaluations: dict[str, dict[str, Any]], config: ReportConfig) -> None:
    for name in ("length_tokens", "batch_size", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: give a number of at least 1.")
    for what in ("task", "selection_metric"):
        values = {role: evaluation.get(what) for role, evaluation in evaluations.items()}
        if len(set(values.values())) > 1:
            named = ", ".join(f"{role} {value}" for role, value in values.items())
            raise UserError(
                f"the evaluations differ in {what}: {named}. Evaluate all models on the same task."
            )


def _named(argument: str) -> tuple[str, str]:
    name, separator, folder = argument.partition("=")
    return (name, folder) if separator else (Path(argument).name, argument)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: allowed are auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Use --device cpu.")
    return torch.device(name)


def _key(config: ReportConfig, folders: dict[str, str], evaluations: Any, curves: Any) -> str:
    weights = [
        sha256_of(file) for folder in folders.values() for file in sorted(Path(folder).glob("*.safetensors"))
    ]
    options = dataclasses.asdict(config)
    options.pop("output_dir")
    return fingerprint([1, options, weights, evaluations, curves, torch.__version__, torch.get_num_threads()])


def _finished(output: Path, key: str) -> dict[str, Any] | None:
    files = [output / name for name in ("report.json", "report.md", "report.png")]
    if not all(file.is_file() for file in files):
        return None
    card = read_json(files[0])
    return card if card.get("key") == key else None


if __name__ == "__main__":
    main()
