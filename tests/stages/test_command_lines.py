"""The command lines users already have, word for word: only the launcher in front differs."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stage_runs import predictions, rows
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from tinybert_dist.files import read_json
from tinybert_dist.models import load_tokenizer, save_model
from tinybert_dist.stages import evaluate, finetune_teacher, general_distill, task_distill

TINY = {
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def desk(workspace, sentences, tmp_path_factory):
    """What a user of the original has: corpus.txt, teacher/, student/ (a general one), SST-2/, dialogue/."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "corpus.txt").write_text("\n".join(sentences[:60]) + "\n")
    tokenizer = load_tokenizer(workspace / "vocab")
    torch.manual_seed(1)
    for name, width, layers in (("teacher", 32, 4), ("student", 16, 2)):
        config = BertConfig(vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, **TINY)
        model = BertForSequenceClassification(config)
        save_model(
            model if name == "teacher" else model.bert, tokenizer, folder / name, card="of no account\n"
        )
    labelled = [(s, int(" the " in s)) for s in sentences[:120]]
    (folder / "SST-2").mkdir()
    for name, part in (("train", labelled[:40]), ("dev", labelled[80:]), ("train_aug", labelled[:80])):
        lines = "".join(f"{s}\t{label}\n" for s, label in part)
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + lines)
    (folder / "dialogue").mkdir()
    for name, part in (("train", labelled[:40]), ("eval", labelled[80:])):
        text = "".join(f"{s}\t{t}\t{label}\n" for (s, label), (t, _) in zip(part, labelled, strict=False))
        (folder / "dialogue" / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch):
    """The literal command lines do not name --wandb_mode."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


def started(stage, line, desk, tmp_path, capsys):
    """Runs a line with D, OUT replaced by folders; returns what it printed."""
    argv = [word.replace("D/", f"{desk}/").replace("OUT", str(tmp_path / "out")) for word in line.split()]
    stage.main(argv)
    return capsys.readouterr().out


def facts(output):
    """The table printed before training."""
    return dict(
        line.strip().split("  ", 1)
        for line in output.splitlines()
        if line.startswith("  ") and "  " in line.strip()
    )


STEP_1 = (
    "--teacher_model D/teacher --student_model D/student --data_dir D/SST-2 --task_name SST-2"
    " --output_dir OUT --max_seq_length 128 --train_batch_size 32 --num_train_epochs 10 --aug_train"
    " --do_lower_case"
)
STEP_2 = STEP_1.replace("--num_train_epochs 10 ", "") + (
    " --pred_distill --learning_rate 3e-5 --num_train_epochs 3 --eval_step 100"
)


def test_step_1(desk, tmp_path, capsys):
    output = started(task_distill, STEP_1, desk, tmp_path, capsys)
    assert "train: 80 examples" in output and "train_aug.tsv" in output
    assert facts(output)["learns"].strip() == "layers 1:2,2:4 (student:teacher)"
    last = rows(tmp_path / "out")[-1]
    assert last["step"] == 30  # 80 rows, 3 steps of at most 32 an epoch
    assert last["learning_rate"] == 5e-5 and rows(tmp_path / "out")[0]["learning_rate"] == 5e-5
    assert (tmp_path / "out" / "projections.safetensors").exists()


def test_step_2(desk, tmp_path, capsys):
    started(task_distill, STEP_2, desk, tmp_path, capsys)
    out = tmp_path / "out"
    assert rows(out)[-1]["step"] == 9 and "loss/prediction" in rows(out)[-1]
    assert read_json(out / "eval_results.json")["task"] == "SST-2"
    assert len(predictions(out)) == 40
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == {0: "0", 1: "1"}


def test_do_eval(desk, tmp_path, capsys):
    line = (
        "--do_eval --student_model D/teacher --data_dir D/SST-2 --task_name SST-2 --output_dir OUT"
        " --eval_batch_size 32 --max_seq_length 128"
    )
    started(task_distill, line, desk, tmp_path, capsys)
    results = read_json(tmp_path / "out" / "eval_results.json")
    assert results["splits"]["dev"]["num_examples"] == 40
    text = dict(x.split(" = ") for x in (tmp_path / "out" / "eval_results.txt").read_text().splitlines())
    assert float(text["dev/accuracy"]) == results["score"]
    assert not (tmp_path / "out" / "run.json").exists()
    # the stage of its own says the same
    argv = ["--model", str(desk / "teacher"), "--data_dir", str(desk / "SST-2"), "--task_name", "SST-2"]
    evaluate.main([*argv, "--output_dir", str(tmp_path / "again")])
    assert read_json(tmp_path / "again" / "eval_results.json") == results


@pytest.mark.parametrize("end", ["", " --continue_train"])
def test_general_distillation(desk, tmp_path, capsys, end):
    line = (
        "--train_file_path D/corpus.txt --teacher_model D/teacher --student_model D/student --output_dir OUT"
        " --max_seq_len 128 --train_batch_size 20 --learning_rate 5e-5 --num_train_epochs 3 --eval_step 5000"
        " --gradient_accumulation_steps 1"
    )
    output = started(general_distill, line + end, desk, tmp_path, capsys)
    rows_of_corpus = int(facts(output)["training rows"].split()[0])
    assert rows(tmp_path / "out")[-1]["step"] == -(-rows_of_corpus // 20) * 3
    start = load_file(desk / "student" / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    saved = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert 0 < float((saved - start[name]).abs().max()) < 1e-3  # continued, not drawn anew


@pytest.mark.parametrize("mode", ["classification", "regression"])
def test_the_forks_task(desk, tmp_path, capsys, mode):
    teacher = "D/teacher"
    if mode == "regression":
        argv = ["--teacher_model", str(desk / "teacher"), "--data_dir", str(desk / "dialogue")]
        argv += ["--task_mode", "regression", "--replace_head", "--max_steps", "1", "--output_dir"]
        finetune_teacher.main([*argv, str(tmp_path / "teacher"), "--wandb_mode", "disabled"])
        teacher = str(tmp_path / "teacher")
    labels = "--num_labels 2" if mode == "classification" else "--num_labels 1"
    line = (
        f"--do_train --teacher_model {teacher} --student_model D/student --data_dir D/dialogue {labels}"
        f" --task_mode {mode} --output_dir OUT --max_seq_length 128 --train_batch_size 32 --pred_distill"
        " --num_train_epochs 1 --do_lower_case"
    )
    output = started(task_distill, line, desk, tmp_path, capsys)
    assert "train: 40 examples" in output and "eval.txt" in output
    assert "text_pair" in predictions(tmp_path / "out")[0]
    metric = "accuracy" if mode == "classification" else "pearson_spearman"
    assert read_json(tmp_path / "out" / "eval_results.json")["selection_metric"] == metric


def test_do_train_and_do_eval_together_train(desk, tmp_path, capsys):
    line = STEP_2.replace("--num_train_epochs 3", "--max_steps 1") + " --do_train --do_eval"
    started(task_distill, line, desk, tmp_path, capsys)
    assert read_json(tmp_path / "out" / "outcome.json")["outcome"] == "finished"


def test_config_file_then_command_line(desk, tmp_path, capsys):
    options = {
        "teacher_model": str(desk / "teacher"),
        "student_model": str(desk / "student"),
        "data_dir": str(desk / "SST-2"),
        "task_name": "SST-2",
        "output_dir": str(tmp_path / "out"),
        "train_batch_size": 20,
        "max_steps": 5,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))
    task_distill.main(["--config", str(tmp_path / "recipe.yaml"), "--max_steps", "2"])
    assert read_json(tmp_path / "out" / "outcome.json")["step"] == 2
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["train_batch_size"] == 20 and written["max_steps"] == 2
    # and the run's own config.yaml starts it again
    assert task_distill.main(["--config", str(tmp_path / "out" / "config.yaml")])["outcome"] == "finished"
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("stage", [general_distill, finetune_teacher, task_distill, evaluate])
def test_unknown_flag_is_one_line_with_the_nearest_name(stage, capsys):
    with pytest.raises(SystemExit) as stop:
        stage.main(["--output_dir", "o", "--data_dir", "d", "--teacher_model", "t", "--student_model", "s",
                    "--train_file_path", "c", "--max_sequence_length", "3"])  # fmt: skip
    assert stop.value.code == 2
    assert "Did you mean --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "line", "expected"),
    [
        (task_distill, STEP_1, ["layers 1:2,2:4", "steps", "30 (3 an epoch)", "trained parameters"]),
        (task_distill, STEP_2, ["predictions", "teacher", "student", "9 (3 an epoch)"]),
        (
            general_distill,
            "--train_file_path D/corpus.txt --teacher_model D/teacher --student_model D/student"
            " --output_dir OUT",
            ["layers 1:2,2:4", "sequences", "parameters"],
        ),
        (
            finetune_teacher,
            "--teacher_model D/teacher --data_dir D/SST-2 --task_name SST-2 --output_dir OUT",
            ["steps", "model", "train: 40 examples"],
        ),
        (
            evaluate,
            "--model D/teacher --data_dir D/SST-2 --task_name SST-2 --output_dir OUT",
            ["parameters", "dev: 40 examples"],
        ),
    ],
    ids=["step 1", "step 2", "general", "finetune", "evaluate"],
)
def test_dry_run_says_what_would_happen_and_writes_no_run(stage, line, expected, desk, tmp_path, capsys):
    before = sorted(desk.rglob("*"))
    output = started(stage, line + " --dry_run", desk, tmp_path, capsys)
    for text in expected:
        assert text in output
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()} if out.exists() else set()
    assert written <= {"tokens"}  # the prepared corpus serves the run that follows
    assert sorted(desk.rglob("*")) == before


def test_secrets_reach_no_file(desk, tmp_path, capsys):
    """A proxy URL with a password among the options: wandb_project stands for any string option."""
    line = STEP_1.replace("--num_train_epochs 10", "--max_steps 1")
    line += " --wandb_project https://me:hunter2@proxy/x?token=swordfish"
    started(task_distill, line, desk, tmp_path, capsys)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.suffix in {".yaml", ".json", ".md", ".jsonl", ".txt"}:
            assert "hunter2" not in path.read_text() and "swordfish" not in path.read_text(), path
    assert "https://***@proxy" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_users_mistake_exits_with_2_and_no_traceback(desk, tmp_path, capsys):
    shutil.copytree(desk / "SST-2", tmp_path / "data")
    (tmp_path / "data" / "dev.tsv").unlink()
    line = f"--teacher_model D/teacher --data_dir {tmp_path}/data --output_dir OUT"
    with pytest.raises(SystemExit) as stop:
        started(finetune_teacher, line, desk, tmp_path, capsys)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --data_dir") and "Traceback" not in error


@pytest.mark.parametrize("student", ["tinybert-4l-312", "D/student.json"])
def test_a_student_without_weights_is_told_where_to_get_them(desk, tmp_path, capsys, student):
    line = f"--teacher_model D/teacher --student_model {student} --data_dir D/SST-2 --output_dir OUT"
    with pytest.raises(SystemExit) as stop:
        started(task_distill, line, desk, tmp_path, capsys)
    assert stop.value.code == 2
    assert "general_distill makes it from text first" in capsys.readouterr().err
