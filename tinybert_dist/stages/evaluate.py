"""Scores a model on a task's dev and test data; writes results, predictions and GLUE submission files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_dist.config import HfArg, StageOptions, run_stage, to_dict
from tinybert_dist.data.encoding import encode
from tinybert_dist.data.glue import is_glue
from tinybert_dist.data.labels import map_labels
from tinybert_dist.data.predictions import write_glue_submission
from tinybert_dist.data.tasks import TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.models import (
    count_parameters,
    label_names,
    load_classifier,
    load_tokenizer,
    require_trained_head,
)
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.scoring import Scorer, write_results
from tinybert_dist.training.strategy import on_main, start_accelerator
from tinybert_dist.training.tracking import Tracker, TrackingOptions


@dataclass(kw_only=True)
class EvaluateConfig(TaskOptions, TrackingOptions, StageOptions):
    """evaluate: model + task data -> eval_results.json, predictions.tsv."""

    student_model: str = HfArg(aliases=["--model"], help="the model to score: hub name or folder")
    splits: list[str] = field(
        default_factory=lambda: ["dev"],
        metadata={"help": "dev, test or both; the first one's score counts"},
    )
    eval_batch_size: int = HfArg(default=64, help="examples of one micro-batch, counted at maximum length")
    mixed_precision: str = HfArg(
        default="no", metadata={"choices": ["auto", "fastest", "no", "bf16"]}, help="precision"
    )
    layout: str = HfArg(
        default="auto", metadata={"choices": ["auto", "packed", "padded", "fixed"]}, help="row layout"
    )
    classifier_head: str = HfArg(
        default="auto",
        metadata={"choices": ["auto", "transformers", "reference"]},
        help="reference = relu after the pooler, as in the original's checkpoints",
    )


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates the splits asked for, unlabelled ones get predictions only; returns the flat metrics."""
    accelerator = start_accelerator(config.mixed_precision, timeout_s=1800)  # no watchdog here
    on_main(accelerator, preflight, "evaluate", config)
    bad = BadRecords(config.on_bad_record)
    tokenizer = load_tokenizer(
        config.student_model, do_lower_case=config.do_lower_case, max_length=config.max_seq_length
    )
    task = load_task(config, bad, splits=config.splits)
    spec = task.spec
    regression = spec.mode == "regression"
    model = load_classifier(
        config.student_model,
        labels=spec.labels or None,
        problem_type="regression" if regression else "single_label_classification",
        classifier_head=config.classifier_head,
    ).eval()
    require_trained_head(model, config.student_model)
    order = (
        None if regression else map_labels(spec.labels, label_names(model.config), model.config.num_labels)
    )
    splits = list(task.splits)
    probe = encode(task.splits[splits[0]], tokenizer, config.max_seq_length)
    collate = choose_collator(
        config.layout,
        [model],
        probe,
        tokenizer,
        max_length=config.max_seq_length,
    )
    model.to(accelerator.device)
    if accelerator.is_main_process:
        print(task.describe(), *filter(None, [bad.summary()]), sep="\n")
    if config.dry_run:
        if accelerator.is_main_process:
            print(f"evaluate: would score {count_parameters(model):,} parameters on {', '.join(splits)}")
        return {"outcome": "dry_run"}
    is_main = accelerator.is_main_process
    with Tracker(config, "evaluate", config.output_dir, is_main, to_dict(config)) as tracker:
        tracker.use_model("student_model", config.student_model)
        scorer = Scorer.of(task, splits, tokenizer, collate, accelerator, config.eval_batch_size, order)
        logits = scorer.all_logits(model)
        scores = scorer.scores(logits)
        result: dict[str, Any] = {"step": 0, "parameters": count_parameters(model), **scores}
        if is_main:
            _write(Path(config.output_dir), scorer, logits, result)
            tracker.log(0, {f"eval/{name}": value for name, value in scores.items()})
            facts = {"score": scores.get("score"), "parameters": result["parameters"]}
            tracker.summary({name: value for name, value in facts.items() if value is not None})
            tracker.log_predictions(config.output_dir)
            if tracker.place:
                print(f"evaluate: wandb run in {tracker.place}")
    accelerator.wait_for_everyone()
    return result


def _write(folder: Path, scorer: Scorer, logits: dict[str, np.ndarray], result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = scorer.task.spec
    scorer.write_predictions(folder, logits)
    for split, values in logits.items():
        if not scorer.is_labelled(split) and is_glue(spec.name):
            lines = scorer.task.origins[split].lines
            print(
                f"GLUE submission: {write_glue_submission(folder / 'submission', spec, split, values, lines)}"
            )
    if "score" in result:
        write_results(folder, spec.name, spec.selection_metric, result)
    for name, value in result.items():
        print(f"  {name:<28} {value:.4f}" if isinstance(value, float) else f"  {name:<28} {value:,}")
    print(f"evaluate: results in {folder}")


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, EvaluateConfig, argv)


if __name__ == "__main__":
    main()
