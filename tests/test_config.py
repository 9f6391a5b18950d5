"""Options: defaults < YAML < command line, unknown keys, secrets."""

from dataclasses import dataclass

import pytest
import yaml

from tinybert_dist.config import HfArg, StageOptions, UserError, parse, run_stage, to_dict, to_yaml
from tinybert_dist.stages import evaluate, finetune_teacher, general_distill, task_distill

CONFIGS = {
    evaluate.EvaluateConfig: ["--student_model", "m", "--data_dir", "d", "--output_dir", "o"],
    finetune_teacher.FinetuneTeacherConfig: ["--teacher_model", "m", "--data_dir", "d", "--output_dir", "o"],
    general_distill.GeneralDistillConfig: [
        *["--train_file_path", "c", "--teacher_model", "t"],
        *["--student_model", "s", "--output_dir", "o"],
    ],
    task_distill.TaskDistillConfig: [
        *["--teacher_model", "t", "--student_model", "s", "--data_dir", "d", "--output_dir", "o"],
    ],
}
general = general_distill.GeneralDistillConfig
task = task_distill.TaskDistillConfig


@dataclass(kw_only=True)
class Small(StageOptions):
    train_batch_size: int = 32
    learning_rate: float = 5e-5
    layer_map: str = "uniform"
    labels: list[str] | None = None
    aug_train: bool = False
    num_labels: int | None = None
    max_seq_length: int = HfArg(default=128, aliases=["--max_seq_len"])


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_command_line_wins_over_yaml_wins_over_defaults(tmp_path):
    path = write(tmp_path, "output_dir: here\ntrain_batch_size: 8\nlearning_rate: 1e-3\naug_train: true\n")
    config = parse(Small, ["--config", path, "--train_batch_size", "4"])
    assert (config.output_dir, config.train_batch_size, config.learning_rate) == ("here", 4, 1e-3)
    assert config.aug_train is True and config.seed == 42
    assert parse(Small, [f"--config={path}", "--aug_train", "false"]).aug_train is False


def test_old_spelling_is_the_same_option(tmp_path):
    assert parse(Small, ["--output_dir", "o", "--max_seq_len", "64"]).max_seq_length == 64
    assert parse(Small, ["--config", write(tmp_path, "output_dir: o\nmax_seq_len: 64")]).max_seq_length == 64


def test_unknown_flag_names_the_nearest():
    with pytest.raises(UserError, match=r"--train_batch_sizes on the command line.*--train_batch_size\?"):
        parse(Small, ["--output_dir", "o", "--train_batch_sizes", "4"])
    with pytest.raises(UserError, match=r"--train_batch on the command line"):  # no silent abbreviation
        parse(Small, ["--output_dir", "o", "--train_batch", "4"])
    with pytest.raises(UserError, match=r"stray"):
        parse(Small, ["--output_dir", "o", "stray"])


def test_unknown_yaml_key_names_file_and_nearest(tmp_path):
    path = write(tmp_path, "output_dir: o\nlerning_rate: 1.0\n")
    with pytest.raises(UserError, match=r"--lerning_rate in .*recipe\.yaml.*--learning_rate\?"):
        parse(Small, ["--config", path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected `key: value` lines, got list"),
        ("a: [", "not valid YAML"),
        ("", "expected `key: value` lines, got NoneType"),
    ],
)
def test_broken_yaml_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        parse(Small, ["--config", write(tmp_path, text)])


def test_missing_yaml_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        parse(Small, ["--config", str(tmp_path / "none.yaml")])


def test_yaml_words_reach_the_option_as_they_are_written(tmp_path):
    """YAML 1.1 reads `no` as false and `1:3` as 63; labels and layer maps mean what stands there."""
    path = write(tmp_path, "output_dir: 007\nlabels: [no, yes]\nlayer_map: 1:3\naug_train: no\nnum_labels:\n")
    config = parse(Small, ["--config", path])
    assert config.labels == ["no", "yes"]
    assert config.layer_map == "1:3" and config.output_dir == "007"
    assert config.aug_train is False and config.num_labels is None


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_print_config_round_trips(config_class, tmp_path, capsys):
    argv = [*CONFIGS[config_class], "--seed", "7", "--max_seq_length", "17"]
    if config_class is not general:
        argv += ["--labels", "no", "yes", "--do_lower_case"]
    if config_class in (general, task):
        argv += ["--layer_map", "1:3,2:4:0.5"]
    with pytest.raises(SystemExit) as stop:
        parse(config_class, [*argv, "--print_config"])
    assert stop.value.code == 0
    path = write(tmp_path, capsys.readouterr().out)
    assert parse(config_class, ["--config", path]) == parse(config_class, argv)


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.__name__)
def test_every_option_has_a_help_text(config_class, capsys):
    with pytest.raises(SystemExit):
        parse(config_class, ["--help"])
    assert "==SUPPRESS==" not in capsys.readouterr().out
    fields = config_class.__dataclass_fields__.values()
    assert [f.name for f in fields if not f.metadata.get("help")] == []


def test_user_errors_are_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        run_stage(lambda config: None, Small, ["--output_dir", "o", "--seeed", "1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown option --seeed") and "--seed?" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("https://user:pa55@host/data", ["user", "pa55"]),
        ("s3://KEY:p@55@bucket/x", ["KEY", "55"]),
        ("https://host/x?token=abc123&part=2", ["abc123"]),
        ("https://bucket.host/x?X-Amz-Signature=abc123&X-Amz-Credential=AKIA7", ["abc123", "AKIA7"]),
        ("https://hf_abc123@host/data", ["hf_abc123"]),
    ],
)
def test_credentials_in_urls_are_redacted(url, secrets):
    config = Small(output_dir="o", layer_map=url, labels=["a", url])
    for text in (to_yaml(config), str(to_dict(config))):
        assert not any(secret in text for secret in secrets), text
        assert "host" in text or "bucket" in text  # still tells where the data came from
    assert config.layer_map == url


def test_ordinary_values_are_not_redacted():
    values = ["a@b", "user/model", "https://host/data?part=2", "https://host/a@b", "x: y", "a:b@c"]
    assert yaml.safe_load(to_yaml(Small(output_dir="o", labels=values)))["labels"] == values


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train_batch_size", "0"], "--train_batch_size 0: must be at least 1"),
        (["--warmup_proportion", "1.5"], "--warmup_proportion 1.5"),
        (["--learning_rate", "0"], "--learning_rate"),
        (["--max_steps", "0"], "--max_steps 0"),
        (["--gradient_accumulation_steps", "64"], "more than --train_batch_size 32"),
    ],
)
def test_values_out_of_range(extra, message):
    with pytest.raises(UserError, match=message):
        parse(general, [*CONFIGS[general], *extra])


def test_step_1_is_constant_and_step_2_linear_as_the_reference():
    """Only step 1 has neither warm-up nor decay; what is asked for wins."""
    one, two = parse(task, CONFIGS[task]), parse(task, [*CONFIGS[task], "--pred_distill"])
    assert (one.lr_schedule, one.warmup_proportion) == ("constant", 0.0)
    assert (two.lr_schedule, two.warmup_proportion) == ("linear", 0.1)
    asked = parse(task, [*CONFIGS[task], "--lr_schedule", "linear"])
    assert (asked.lr_schedule, asked.warmup_proportion) == ("linear", 0.1)
