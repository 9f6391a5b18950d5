"""General distillation: a student learns a teacher's attention scores and hidden states on raw text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tinybert_dist.config import HfArg, run_stage
from tinybert_dist.data.corpus_part import Recipe
from tinybert_dist.data.options import CorpusOptions
from tinybert_dist.data.stream import Stream, open_stream
from tinybert_dist.data.tokens import TokenDataset
from tinybert_dist.distill.options import DistillOptions
from tinybert_dist.distill.teacher import Teacher
from tinybert_dist.models import (
    count_parameters,
    load_encoder,
    load_tokenizer,
    weights_fingerprint,
)
from tinybert_dist.preflight.checks import preflight
from tinybert_dist.training.corpus import open_corpus, refuse_prepared
from tinybert_dist.training.job import Job
from tinybert_dist.training.layout import choose_collator
from tinybert_dist.training.options import TrainingOptions
from tinybert_dist.training.outputs import encoder_outputs
from tinybert_dist.training.strategy import RunAccelerator, on_main, start_accelerator
from tinybert_dist.training.student import (
    check_same_vocabulary,
    continue_projections,
    new_or_trained_student,
)
from tinybert_dist.training.teacher_placement import place_teacher, require_sharding, teacher_dtype
from tinybert_dist.training.train import train


@dataclass(kw_only=True)
class GeneralDistillConfig(CorpusOptions, DistillOptions, TrainingOptions):
    """general_distill: text + pretrained teacher -> general student."""

    train_file_path: str = HfArg(
        help="text (file, folder or glob; one sentence per line) or a folder of prepare_corpus"
    )
    teacher_model: str = HfArg(help="pretrained encoder: hub name or folder")
    student_model: str = HfArg(
        help="tinybert-4l-312, tinybert-6l-768, config.json of a new student, or a folder with weights"
    )
    init_from_teacher_layers: list[int] | None = field(
        default=None,
        metadata={"help": "teacher layers, counted from 1, a new student of the same width starts from"},
    )
    streaming: bool = HfArg(
        default=False,
        help="train on raw text as it is read (file, folder, glob, URL, hub:NAME), without preparing it; "
        "tokenised by --num_workers",
    )
    prepare_workers: int = HfArg(default=1, help="processes that tokenise raw text (not with --streaming)")


def run(config: GeneralDistillConfig) -> dict[str, Any]:
    """Prepares or streams the corpus, distils, writes the run folder; returns its outcome."""
    accelerator = start_accelerator(config.mixed_precision)
    require_sharding(accelerator, config.teacher_sharding)
    on_main(accelerator, preflight, "general_distill", config)
    tokenizer = load_tokenizer(
        config.teacher_model, do_lower_case=config.do_lower_case, max_length=config.max_seq_length
    )
    check_same_vocabulary(tokenizer, config.student_model, config.teacher_model, config.do_lower_case)
    dataset = _open(config, accelerator, tokenizer)
    teacher = load_encoder(config.teacher_model)
    student = new_or_trained_student(
        config.student_model, teacher, config.seed, config.init_from_teacher_layers
    )
    facts = {
        "teacher": f"{config.teacher_model}: {count_parameters(teacher):,} parameters",
        "student": f"{config.student_model}: {count_parameters(student):,} parameters",
    }
    inputs = {
        "train_file_path": dataset.fingerprint,
        "teacher_model": weights_fingerprint(teacher),
        "student_model": weights_fingerprint(student),
        "prepare_workers": None,
    }
    layer_map = config.build_map(student.config, teacher.config)
    collate = choose_collator(
        config.layout,
        [teacher, student],
        dataset.sample if isinstance(dataset, Stream) else dataset,
        tokenizer,
        max_length=config.max_seq_length,
        reference_averaging=config.reference_averaging,
    )
    torch.manual_seed(config.seed)
    distiller = config.build_distiller(student, teacher.config, layer_map, prediction=False, regression=False)
    continue_projections(distiller, config.student_model)
    outcome = train(
        Job(
            stage="general_distill",
            options=config,
            accelerator=accelerator,
            module=distiller,
            dataset=dataset,
            collate=collate,
            inputs=inputs,
            make_targets=lambda: place_teacher(
                Teacher(teacher, layer_map), accelerator, config.teacher_sharding, teacher_dtype(accelerator)
            ),
            write_outputs=encoder_outputs(
                config, "general_distill", student, tokenizer, accelerator,
                teacher=config.teacher_model, distiller=distiller,
            ),
            models={"teacher_model": config.teacher_model, "student_model": config.student_model},
            facts={**facts, "learns": f"layers {layer_map} (student:teacher)"},
        )
    )  # fmt: skip
    return outcome


def _open(
    config: GeneralDistillConfig, accelerator: RunAccelerator, tokenizer: PreTrainedTokenizerBase
) -> TokenDataset | Stream:
    path, skips = config.train_file_path, config.on_bad_record
    recipe = Recipe(config.mode, config.max_seq_length, config.seed, config.text_column)
    if config.streaming:
        refuse_prepared(path)
        if config.prepare_workers > 1:
            accelerator.print("note: --prepare_workers does nothing with --streaming; --num_workers tokenise")
        return on_main(accelerator, lambda: open_stream(path, tokenizer, recipe, on_bad_record=skips))
    prepared, workers = Path(config.output_dir) / "tokens", config.prepare_workers
    return open_corpus(
        accelerator, path, prepared, tokenizer, recipe, on_bad_record=skips, num_workers=workers
    )


def main(argv: list[str] | None = None) -> Any:
    """Command line of the stage."""
    return run_stage(run, GeneralDistillConfig, argv)


if __name__ == "__main__":
    main()
