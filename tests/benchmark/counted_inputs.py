"""What the counted runs are started with: made up, so that they are the same on every machine."""

from model_folders import SPECIAL, write_tiny_pair

from tinybert_dist.models import load_tokenizer

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrs"]


def sentence(i):
    """Of 4 to 20 words."""
    return " ".join(WORDS[(i * i + 3 * j) % len(WORDS)] for j in range(4 + 7 * i % 17))


def write_inputs(folder):
    """vocab/, corpus.txt (lines), teacher/ (a classifier, random weights), student.json, task/."""
    (folder / "vocab").mkdir(parents=True)
    (folder / "vocab" / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    (folder / "corpus.txt").write_text("\n\n".join(sentence(i) for i in range(64)) + "\n")
    write_tiny_pair(folder, load_tokenizer(folder / "vocab"))
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
