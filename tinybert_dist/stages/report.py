"""report: the report card of a student: scores against its teacher, size, speed, loss curves, over seeds.

Reads finished folders; writes report.json, report.md and report.png into --output_dir. Scores come from
the eval_results.json of --*_eval (default: the model's own folder); size and speed are measured here.
Several folders of one model that differ in their seed: mean and spread of the scores, speed of the first.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tinybert_dist.config import HfArg, StageOptions, UserError, run_stage, to_dict
from tinybert_dist.encoders import num_positions
from tinybert_dist.export import onnx_files
from tinybert_dist.export.formats import FILES
from tinybert_dist.files import fingerprint, read_json, sha256_of, write_atomic, write_json
from tinybert_dist.models import load_classifier
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.report import card as report_card
from tinybert_dist.report import figures, measure, speed
from tinybert_dist.training.options import OPERATIONAL
from tinybert_dist.training.tracking import Tracker, TrackingOptions

VERSION = 2
OUTPUTS = ("report.json", "report.md", "report.png")
Curves = dict[str, list[list[dict[str, Any]]]]


@dataclasses.dataclass(kw_only=True)
class ReportConfig(speed.SpeedOptions, TrackingOptions, StageOptions):
    """Which models to compare, where their scores and curves are, and how speed is measured."""

    teacher_model: list[str] = field(metadata={"help": "folder of the teacher; several: of several seeds"})
    student_model: list[str] = field(metadata={"help": "folder of the student; several: of several seeds"})
    label_only_model: list[str] = field(
        default_factory=list, metadata={"help": "the same of the student trained without a teacher"}
    )
    teacher_eval: list[str] = field(
        default_factory=list,
        metadata={"help": "folder with eval_results.json, for each teacher (default: its own)"},
    )
    student_eval: list[str] = field(default_factory=list, metadata={"help": "the same for each student"})
    label_only_eval: list[str] = field(
        default_factory=list, metadata={"help": "the same for each label-only model"}
    )
    export_folder: str | None = HfArg(
        default=None, help="output folder of export: its ONNX files are on the card, too"
    )
    run_folders: list[str] = field(
        default_factory=list,
        metadata={"help": "training folders whose curves are drawn: FOLDER or NAME=FOLDER; one panel a NAME"},
    )
    device: str = HfArg(default="auto", help="cpu, cuda, or auto: a GPU where there is one")


def run(config: ReportConfig) -> dict[str, Any]:
    """Measures, writes the three files, prints the card, returns it. Unchanged inputs: what is on disk."""
    config.check()
    preflight("report", config)
    folders = {role: names for role in report_card.ROLES if (names := getattr(config, f"{role}_model"))}
    evaluations = {role: _evaluations(config, role, names) for role, names in folders.items()}
    _check_same_task(evaluations)
    curves = _curves(config.run_folders)
    exported = measure.read_export(config.export_folder) if config.export_folder else None
    output = Path(config.output_dir)
    if config.dry_run:
        print(f"report: would compare {', '.join(map(' '.join, folders.values()))} into {output}")
        return {}
    key = _key(config, folders, evaluations, curves, exported)
    if (finished := _finished(output, key)) is not None:
        print((output / "report.md").read_text(encoding="utf-8"))
        print(f"report: {output} is up to date")
        return finished
    device = _device(config.device)
    models = {role: load_classifier(names[0]) for role, names in folders.items()}
    variants = _variants(config, exported, device)
    lengths, timed = _speed(config, models, variants, device)
    entries: dict[str, Any] = {
        role: {
            "folders": [os.path.relpath(folder, output) for folder in folders[role]],
            "task": evaluations[role][0].get("task", ""),
            "metric": evaluations[role][0].get("selection_metric", "score"),
            **measure.over_seeds(evaluations[role]),
            **measure.describe(model, folders[role][0], lengths),
            "speed": timed[role],
        }
        for role, model in models.items()
    }
    if exported is not None:
        for name in report_card.VARIANTS:
            if name in exported["formats"]:
                entries[name] = {k: v for k, v in exported["formats"][name].items() if k != "speed"}
                entries[name] |= {"speed": timed[name]} if name in timed else {}
    card = report_card.build(entries, speed.hardware(device))
    if exported is not None:
        card["exported_from"] = exported["formats"]["transformers"]
    card |= {"runs": list(curves), "key": key}
    _write(config, output, card, curves)
    return card


def outputs(config: ReportConfig) -> list[str]:
    """Of a pipeline: the three files, in a folder that may hold everything else, too."""
    return [os.path.join(config.output_dir, name) for name in OUTPUTS]


def main(argv: Sequence[str] | None = None) -> Any:
    """Command line."""
    return run_stage(run, ReportConfig, argv)


def _write(config: ReportConfig, output: Path, card: dict[str, Any], curves: Curves) -> None:
    output.mkdir(parents=True, exist_ok=True)
    markdown = report_card.to_markdown(card)
    figures.draw(card, curves, output / "report.png")
    write_atomic(output / "report.md", markdown)
    with Tracker(config, "report", output, True, to_dict(config)) as tracker:
        for option in ("teacher_model", "student_model", "label_only_model"):
            for folder in getattr(config, option)[:1]:
                tracker.use_model(option, folder)
        tracker.log_image(output / "report.png")
        for name, (columns, rows) in report_card.tables(card).items():
            tracker.log_table(name, columns, rows)
        tracker.summary({k: v for k, v in card.items() if isinstance(v, int | float)})
        place = tracker.place
    write_json(output / "report.json", card)  # last: the mark of a finished report
    print(markdown)
    print(f"report: wrote {', '.join(OUTPUTS)} into {output}")
    if place:
        print(f"report: wandb run in {place}")


def _evaluations(config: ReportConfig, role: str, models: list[str]) -> list[dict[str, Any]]:
    folders = getattr(config, f"{role}_eval") or models
    if len(folders) != len(models):
        raise UserError(
            f"--{role}_eval names {len(folders)} folders, --{role}_model {len(models)}: one for each model."
        )
    return [measure.read_evaluation(folder) for folder in folders]


def _check_same_task(evaluations: Mapping[str, list[dict[str, Any]]]) -> None:
    for what in ("task", "selection_metric"):
        values = {f"{role} {e.get(what)}" for role, several in evaluations.items() for e in several}
        if len({e.get(what) for several in evaluations.values() for e in several}) > 1:
            raise UserError(
                f"the evaluations differ in {what}: {', '.join(sorted(values))}. Evaluate all models on the "
                "same task."
            )


def _curves(arguments: list[str]) -> Curves:
    curves: Curves = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if not separator:
            name, folder = Path(argument).name, argument
        curves.setdefault(name, []).append(measure.read_curve(folder))
    return curves


def _variants(
    config: ReportConfig, exported: dict[str, Any] | None, device: torch.device
) -> dict[str, speed.Runner]:
    """The exported files as they are run; none on a GPU, where they would be compared across devices."""
    names = [name for name in report_card.VARIANTS if exported and name in exported["formats"]]
    if not names or device.type != "cpu":
        return {}
    onnx_files.require_packages("measure exported files, or leave --export_folder out")
    files = {name: Path(str(config.export_folder)) / FILES[name] for name in names}
    threads = torch.get_num_threads()
    return {name: speed.of_logits(onnx_files.OnnxClassifier(file, threads)) for name, file in files.items()}


def _speed(
    config: ReportConfig,
    models: Mapping[str, PreTrainedModel],
    variants: Mapping[str, speed.Runner],
    device: torch.device,
) -> tuple[list[int], dict[str, list[dict[str, Any]]]]:
    for model in models.values():
        model.to(device)  # type: ignore[arg-type]  # the wrapper that transformers puts around it hides the types
    lengths = speed.lengths_within(config, min(num_positions(model.config) for model in models.values()))
    runners = {role: speed.of_torch(model) for role, model in models.items()} | dict(variants)
    vocab_size = min(int(model.config.vocab_size) for model in models.values())
    return lengths, speed.measure_speed(runners, config, lengths=lengths, vocab_size=vocab_size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: allowed are auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Use --device cpu.")
    return torch.device(name)


def _key(
    config: ReportConfig, folders: Mapping[str, list[str]], evaluations: Any, curves: Any, exported: Any
) -> str:
    names = [folder for several in folders.values() for folder in several]
    weights = [sha256_of(file) for name in names for file in sorted(Path(name).glob("*.safetensors"))]
    options = {k: v for k, v in dataclasses.asdict(config).items() if k not in OPERATIONAL}
    inputs = [options, weights, evaluations, curves, exported and exported["key"]]
    return fingerprint([VERSION, *inputs, torch.__version__, torch.get_num_threads()])


def _finished(output: Path, key: str) -> dict[str, Any] | None:
    if not all((output / name).is_file() for name in OUTPUTS):
        return None
    card = read_json(output / "report.json")
    return card if card.get("key") == key else None


if __name__ == "__main__":
    main()
