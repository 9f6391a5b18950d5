"""What the counted runs are started with: made up, so that they are the same on every machine."""

import json

import torch
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.models import load_tokenizer, save_model

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrs"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEACHER = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
STUDENT = TEACHER | {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48, "model_type": "bert"}


def sentence(i):
    """Of 4 to 20 words."""
    return " ".join(WORDS[(i * i + 3 * j) % len(WORDS)] for j in range(4 + 7 * i % 17))


def write_inputs(folder):
    """vocab/, corpus.txt (lines), teacher/ (a classifier, random weights), student.json, task/."""
    (folder / "vocab").mkdir(parents=True)
    (folder / "vocab" / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    (folder / "corpus.txt").write_text("\n\n".join(sentence(i) for i in range(64)) + "\n")
    tokenizer = load_tokenizer(folder / "vocab")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
        **TEACHER,
    )
    save_model(BertForSequenceClassification(config), tokenizer, folder / "teacher", card="random\n")
    (folder / "student.json").write_text(json.dumps(STUDENT))
    (folder / "task").mkdir()
    for name, rows in (("train", range(64)), ("dev", range(64, 80))):
        lines = [f"{sentence(i)}\t{'yes' if i % 3 else 'no'}" for i in rows]
        (folder / "task" / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return folder


def plan(inputs, output_dir, names):
    """{name: [stage, argv]} of the runs named; later ones may read what earlier ones wrote."""
    common = {
        "teacher_model": inputs / "teacher",
        "max_seq_length": 32,
        "train_batch_size": 16,  # 4 steps an epoch
        "max_steps": 8,
        "eval_step": 8,
        "save_step": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "wandb_mode": "disabled",
    }
    general = {
        "train_file_path": inputs / "corpus.txt",
        "student_model": inputs / "student.json",
        "mode": "line",
    }
    task = {"data_dir": inputs / "task"}
    accumulated = {"gradient_accumulation_steps": 4}
    stages = {
        "general": ("general_distill", general),
        "general, 4 micro-batches": ("general_distill", general | accumulated),
        "step 1": ("task_distill", task | {"student_model": output_dir / "general"}),
        "step 2": ("task_distill", task | {"student_model": output_dir / "step 1", "pred_distill": True}),
        "fine-tuning": ("finetune_teacher", task),
        "fine-tuning, 4 micro-batches": ("finetune_teacher", task | accumulated),
    }
    runs = {}
    for name in names:
        stage, options = stages[name]
        argv = []
        for option, value in (common | options | {"output_dir": output_dir / name}).items():
            argv += [f"--{option}", *([] if value is True else [str(value)])]
        runs[name] = [stage, argv]
    return runs
