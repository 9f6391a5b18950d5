"""Fine-tunes an encoder on a task's labels: teacher or baseline; can pretrain it from scratch before."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from tinybert_dist.config import HfArg, UserError, run_stage
from tinybert_dist.data.batches import masked_language_model
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.labels import map_labels
from tinybert_dist.data.task_tokens import prepare_rows
from tinybert_dist.data.tasks import TaskData, TaskOptions, load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.capture import masked_lm_head
from tinybert_dist.distill.modules import Classifier, MaskedLanguageModel
from tinybert_dist.files import fingerprint
from tinybert_dist.models import (
    count_parameters,
    label_names,
    load_classifier,
    load_config,
    load_tokenizer,
    weights_fingerprint,
)
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.corpus import open_corpus
from tinybert_dist.training.job import Job
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.outputs import classifier_outputs, encoder_outputs
from tinybert_dist.training.scoring import Scorer
from tinybert_dist.training.strategy import RunAccelerator, on_main, start_accelerator
from tinybert_dist.training.train import train

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class FinetuneTeacherConfig(TaskOptions, TrainingOptions):
    """finetune_teacher: labels -> classification or regression model."""

    teacher_model: str | None = HfArg(default=None, help="pretrained model to fine-tune: hub name or folder")
    from_scratch: str | None = HfArg(default=None, help="config.json of a new model to train instead")
    tokenizer: str | None = HfArg(
        default=None, help="hub name or folder (default: the teacher's); needed with --from_scratch"
    )
    replace_head: bool = HfArg(default=False, help="start with a new classification head")
    pretrain_file_path: str | None = HfArg(
        default=None, help="text for masked-LM pretraining of --from_scratch"
    )
    pretrain_steps: int = HfArg(default=1000, help="optimizer steps of pretraining")
    pretrain_batch_size: int = HfArg(default=32, help="sequences of one optimizer step of pretraining")
    pretrain_learning_rate: float = HfArg(default=5e-4, help="peak learning rate of pretraining")
    pretrain_max_seq_length: int | None = HfArg(
        default=None, help="tokens per sequence (default: --max_seq_length)"
    )
    mlm_probability: float = HfArg(default=0.15, help="share of the tokens that is masked")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.teacher_model is None) == (self.from_scratch is None):
            raise UserError(
                "give either --teacher_model (fine-tune it) or --from_scratch config.json (a new model)"
            )
        if self.from_scratch and not self.tokenizer:
            raise UserError(
                "--from_scratch needs --tokenizer: a folder with vocab.txt or tokenizer.json, or a hub name"
            )
        if self.pretrain_file_path and not self.from_scratch:
            raise UserError(
                "--pretrain_file_path is for --from_scratch; a pretrained --teacher_model is only fine-tuned"
            )
        if self.unlabelled_file_path:
            logger.warning("--unlabelled_file_path has no effect: a teacher learns from labels")


def run(config: FinetuneTeacherConfig) -> dict[str, Any]:
    """Pretrains when asked, fine-tunes, writes the run folder; returns its outcome."""
    accelerator = start_accelerator(config.mixed_precision)
    on_main(accelerator, preflight, "finetune_teacher", config)
    bad = BadRecords(config.on_bad_record)
    vocabulary = config.tokenizer or config.teacher_model
    assert vocabulary is not None  # __post_init__ demands one
    tokenizer = load_tokenizer(
        vocabulary, do_lower_case=config.do_lower_case, max_length=config.max_seq_length
    )
    task = on_main(accelerator, load_task, config, bad, ("dev",))
    prepared = Path(config.output_dir) / "tokens"
    rows = on_main(accelerator, prepare_rows, config, task, tokenizer, prepared, bad, False)
    dataset = rows.dataset
    if accelerator.is_main_process:
        print(task.describe(), rows.description, *filter(None, [bad.summary()]), sep="\n")
    source = config.teacher_model
    if config.pretrain_file_path:
        source = str(Path(config.output_dir) / "pretrained")
        outcome = pretrain(config, source, tokenizer, accelerator)
        if outcome["outcome"] != "finished":
            return outcome
    model = _classifier(config, source, task, tokenizer)
    collate = choose_collator(
        config.layout,
        [model],
        dataset,
        tokenizer,
        max_length=config.max_seq_length,
    )
    order = _label_order(task, model)
    if order is not None and (order != range(len(order))).any():
        raise UserError(
            f"{source}: its labels stand in another order than the data's ({', '.join(task.spec.labels)}); "
            "give --labels in the model's order, or --replace_head"
        )
    scorer = Scorer.of(task, task.dev_splits, tokenizer, collate, accelerator, config.eval_batch_size)
    module = Classifier(model, regression=task.spec.mode == "regression")
    outcome = train(
        Job(
            stage="finetune_teacher",
            options=config,
            accelerator=accelerator,
            module=module,
            dataset=dataset,
            collate=collate,
            inputs={
                "teacher_model": weights_fingerprint(model),
                "data_dir": fingerprint([task.fingerprint, rows.sources["train"]]),
                "unlabelled_file_path": None,
                "tokenizer": dataset.fingerprint,
                "pretrain_file_path": None,
                "from_scratch": None,
            },
            evaluate=lambda: scorer(model),
            keep="best",
            write_outputs=classifier_outputs(
                config, "finetune_teacher", model, tokenizer, scorer, accelerator, source
            ),
            models={"teacher_model": source} if source else {},
            bad_records=bad.summary(),
            facts={"model": f"{source or config.from_scratch}: {count_parameters(model):,} parameters"},
        )
    )
    return outcome


def pretrain(
    config: FinetuneTeacherConfig, folder: str, tokenizer, accelerator: RunAccelerator
) -> dict[str, Any]:
    """Masked-LM pretraining of a new model into `folder`, a run folder of its own."""
    length = config.pretrain_max_seq_length or config.max_seq_length
    dataset = open_corpus(
        accelerator,
        str(config.pretrain_file_path),
        Path(folder) / "tokens",
        tokenizer,
        Recipe("pairs", length, config.seed),
        on_bad_record=config.on_bad_record,
    )
    torch.manual_seed(config.seed)
    model = AutoModelForMaskedLM.from_config(_new_config(config, tokenizer))
    _start_from_frequencies(model, dataset)
    collate = choose_collator(
        config.layout,
        [model],
        dataset,
        tokenizer,
        max_length=length,
    )
    options = dataclasses.replace(
        config,
        output_dir=folder,
        train_batch_size=config.pretrain_batch_size,
        learning_rate=config.pretrain_learning_rate,
        max_steps=config.pretrain_steps,
        eval_step=None,
        save_step=config.save_step or 500,
    )
    mask = masked_language_model(
        tokenizer.mask_token_id, len(tokenizer), tokenizer.all_special_ids, config.mlm_probability
    )
    fixed = {
        "pretrain_file_path": dataset.fingerprint,
        "data_dir": None,
        "teacher_model": None,
        "tokenizer": None,
    }
    return train(
        Job(
            stage="pretrain",
            options=options,
            accelerator=accelerator,
            module=MaskedLanguageModel(model, masked_lm_head(model)),
            dataset=dataset,
            collate=collate,
            inputs={**fixed, "from_scratch": weights_fingerprint(model)},
            transform=mask,
            write_outputs=encoder_outputs(options, "pretrain", model, tokenizer, accelerator),
            facts={"model": f"new {model.config.model_type}: {count_parameters(model):,} parameters"},
        )
    )


def _start_from_frequencies(model: PreTrainedModel, dataset: TokenDataset) -> None:
    """Output bias = log frequency of each word piece, so that no step is spent on learning it.

    Measured on the quickstart's teacher: without it the hidden states collapse to a constant that encodes the
    frequencies, and fine-tuning never leaves chance (loss ln 8) from there.
    """
    sample = dataset.fetch(range(min(len(dataset), 4096)))
    counts = (
        np.bincount(np.concatenate([s.input_ids for s in sample]), minlength=model.config.vocab_size) + 0.1
    )
    with torch.no_grad():
        model.get_output_embeddings().bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


def _new_config(config: FinetuneTeacherConfig, tokenizer):
    assert config.from_scratch is not None  # there is no teacher to start from
    return load_config(config.from_scratch, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)


def _classifier(
    config: FinetuneTeacherConfig, source: str | None, task: TaskData, tokenizer
) -> PreTrainedModel:
    spec = task.spec
    problem_type = "regression" if spec.mode == "regression" else "single_label_classification"
    if source is not None:
        return load_classifier(
            source,
            labels=spec.labels or None,
            problem_type=problem_type,
            classifier_head="transformers",
            replace_head=config.replace_head,
            seed=config.seed,
        )
    new = _new_config(config, tokenizer)
    new.problem_type = problem_type
    new.num_labels = spec.num_labels
    if spec.labels:
        new.id2label = dict(enumerate(spec.labels))
        new.label2id = {name: i for i, name in enumerate(spec.labels)}
    torch.manual_seed(config.seed)
    return AutoModelForSequenceClassification.from_config(new)


def _label_order(task: TaskData, model: PreTrainedModel):
    if task.spec.mode == "regression":
        return None
    return map_labels(task.spec.labels, label_names(model.config), model.config.num_labels)


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, FinetuneTeacherConfig, argv)


if __name__ == "__main__":
    main()
