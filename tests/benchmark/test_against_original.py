"""How many times faster training and evaluation are than the original's, read literally: -m slow -s.

One thread, CPU-seconds, real data, models of the real sizes with random weights; literal and ours in turns.
What counts is real tokens: a row costs the original the same whatever its length, so that its rate is rows
times the mean length of the data.
"""

import copy
import ctypes
import gzip
import re
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from literal_distillation import LiteralDistillation, evaluate, features
from matrix_products import matrix_products_per_s
from stage_steps import Steps, job_of
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.data.tasks import load_task
from tinybert_dist.data.text import BadRecords
from tinybert_dist.models import load_tokenizer, save_model
from tinybert_dist.stages import general_distill, task_distill
from tinybert_dist.students import new_student
from tinybert_dist.training.scoring import Scorer

pytestmark = pytest.mark.slow
ROUNDS, NUM_EXAMPLES, TASK_LENGTH, GENERAL_LENGTH = 2, 1024, 64, 128
LITERAL_ROWS = 8  # of one micro-batch of general distillation: 32 would take 17 GB, so that it accumulates


@pytest.fixture(scope="module")
def bench(shared_data, tmp_path_factory):
    """teacher/, student/, lines.txt, filled.txt (one document), SST-2/; one thread."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("against_original")
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased")
    labels = {0: "0", 1: "1"}
    config = BertConfig(
        vocab_size=len(tokenizer), id2label=labels, problem_type="single_label_classification"
    )
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(config)
    save_model(teacher, tokenizer, folder / "teacher", card="random weights\n")
    student = new_student("tinybert-4l-312", teacher_config=config, seed=0)
    save_model(student, tokenizer, folder / "student", card="random weights\n")
    with gzip.open(shared_data / "corpus" / "en" / "wikinews_en.sent.txt.gz", "rt", encoding="utf-8") as file:
        lines = list(islice(file, 6000))
    (folder / "lines.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "filled.txt").write_text("".join(line for line in lines if line.strip()), encoding="utf-8")
    (folder / "SST-2").mkdir()
    for name, rows in (("train", NUM_EXAMPLES + 1), ("dev", None)):
        whole = (shared_data / "glue" / "SST-2" / f"{name}.tsv").read_text(encoding="utf-8").split("\n")
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(whole[:rows]) + "\n", encoding="utf-8")
    return folder


def general_job(bench, tmp_path, mode, batch_size):
    return job_of(
        general_distill,
        train_file_path=bench / ("lines.txt" if mode == "line" else "filled.txt"),
        teacher_model=bench / "teacher",
        student_model="tinybert-4l-312",
        output_dir=tmp_path / "run",
        max_seq_len=GENERAL_LENGTH,
        train_batch_size=batch_size,
        mode=mode,
    )


def task_job(bench, tmp_path, **options):
    return job_of(
        task_distill,
        teacher_model=bench / "teacher",
        student_model=bench / "student",
        data_dir=bench / "SST-2",
        task_name="SST-2",
        output_dir=tmp_path / "run",
        max_seq_length=TASK_LENGTH,
        train_batch_size=32,
        num_train_epochs=4,
        **options,
    )


def literal_of(job, teacher):
    """The literal reading with the job's models, and no hand of ours on their weights."""
    projection = job.module.projections[0] if job.module.projections else torch.nn.Linear(312, 768)
    models = [copy.deepcopy(model) for model in (teacher, job.module.model, projection)]
    return LiteralDistillation(*(model.requires_grad_(True) for model in models))


class Comparison:
    """CPU-seconds, real tokens and memory of two ways to do the same, in turns."""

    def __init__(self, literal, ours):
        """Callables that do some of the work and return its real tokens."""
        literal(), ours()  # warm
        self.cpu_s, self.tokens, self.peak_bytes = ({way: 0.0 for way in (literal, ours)} for _ in range(3))
        self.ways, self.products_per_s = (literal, ours), []
        for _ in range(ROUNDS):
            self.products_per_s.append(matrix_products_per_s())
            for way in self.ways:
                before = forget_peak_memory()
                start_s = time.process_time()
                self.tokens[way] += way()
                self.cpu_s[way] += time.process_time() - start_s
                self.peak_bytes[way] = max(self.peak_bytes[way], memory("VmHWM") - before)

    @property
    def ratio(self):
        literal, ours = self.rates()
        return ours / literal

    def rates(self):
        """Real tokens per CPU-second: literal, ours."""
        return [self.tokens[way] / self.cpu_s[way] for way in self.ways]

    def tell(self, name, padding, goal, tokens_per_unit=1.0, unit="real tokens"):
        literal, ours = (rate / tokens_per_unit for rate in self.rates())
        peak = [self.peak_bytes[way] / 2**30 for way in self.ways]
        products = max(self.products_per_s) / 1e9
        print(
            f"\n{name}: literal {literal:,.1f}, ours {ours:,.1f} {unit} per CPU-second: {self.ratio:.2f} x "
            f"(goal {goal} x); {100 * padding:.0f} % of the literal's tokens are padding; memory on top "
            f"{peak[0]:.2f} and {peak[1]:.2f} GiB; matrix products {products:.0f} GFLOP/s"
        )


def memory(line):
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    found = re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found.group(1))


def forget_peak_memory():
    """Hands free memory back and starts the peak anew; returns what is in use."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def forever(loader):
    while True:
        yield from loader


def compared(job, steps_each, literal_step, micro_rows, num_micro_batches=1):
    """Literal steps against the loop's: steps_each of them at a time (literal, ours)."""
    rows, length = job.dataset, job.collate.max_length
    some = features(rows, range(min(len(rows), 1024)), length)
    mean_length = rows.num_tokens / len(rows)
    batches = forever(DataLoader(some, batch_size=micro_rows, shuffle=True, drop_last=True))
    steps = Steps(job)

    def literal():
        for _ in range(steps_each[0]):
            literal_step([next(batches) for _ in range(num_micro_batches)])
        return steps_each[0] * num_micro_batches * micro_rows * mean_length

    def ours():
        return sum(sum(b.num_tokens for _, b in next(steps).micro_batches) for _ in range(steps_each[1]))

    return Comparison(literal, ours), mean_length, 1 - mean_length / length


@pytest.mark.parametrize(
    ("mode", "batch_size", "steps_each", "goal"),
    [("line", 32, (1, 5), 5), ("line", 8, (3, 16), 5), ("pairs", 8, (3, 4), 1.5), ("pairs", 32, (1, 2), 1.5)],
)
def test_general_distillation(bench, tmp_path, mode, batch_size, steps_each, goal):
    job = general_job(bench, tmp_path, mode, batch_size)
    literal = literal_of(job, job.make_targets().model)
    parts = batch_size // LITERAL_ROWS
    comparison, _, padding = compared(job, steps_each, literal.general_step, LITERAL_ROWS, parts)
    comparison.tell(f"general distillation, {mode}, batch {batch_size}", padding, goal)
    assert comparison.ratio > goal


def test_task_step_1(bench, tmp_path):
    job = task_job(bench, tmp_path)
    literal = literal_of(job, job.make_targets().model)
    comparison, length, padding = compared(job, (1, 6), lambda batches: literal.step_1(batches[0]), 32)
    comparison.tell("task step 1, SST-2, batch 32", padding, 5, length, "examples")
    assert comparison.ratio > 5


def test_task_step_2_after_the_first_epoch(bench, tmp_path):
    job = task_job(bench, tmp_path, pred_distill=True)
    teacher = BertForSequenceClassification.from_pretrained(bench / "teacher")
    literal = literal_of(job, teacher)
    comparison, length, padding = compared(job, (1, 12), lambda batches: literal.step_2(batches[0]), 32)
    comparison.tell("task step 2, kept logits, SST-2, batch 32", padding, 15, length, "examples")
    assert comparison.ratio > 15


def test_evaluation(bench, tmp_path):
    job = task_job(bench, tmp_path, pred_distill=True)
    tokenizer = load_tokenizer(bench / "teacher")
    task = load_task(job.options, BadRecords("error"), ("dev",))
    scorer = Scorer.of(task, ["dev"], tokenizer, job.collate, job.accelerator, job.options.eval_batch_size)
    dataset, model = scorer.datasets["dev"], job.module.model
    padded = features(dataset, range(len(dataset)), TASK_LENGTH)

    def literal():
        evaluate(model, padded, 32)
        return dataset.num_tokens

    def ours():
        scorer(model)
        return dataset.num_tokens

    mean_length = dataset.num_tokens / len(dataset)
    comparison = Comparison(literal, ours)
    comparison.tell("evaluation, SST-2", 1 - mean_length / TASK_LENGTH, 2.5, mean_length, "examples")
    assert comparison.ratio > 2.2  # 39 % of the tokens are real: 2.6 for padding alone
