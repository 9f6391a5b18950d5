"""One benchmark of everything: what it tells, that its figures agree with one another, what it leaves."""

import json
import math
import tempfile

import pytest
from benchmark_runs import arguments, options, run

from tinybert_dist.benchmark.options import STAGES
from tinybert_dist.benchmark.table import NAMES, advice, to_text
from tinybert_dist.config import UserError
from tinybert_dist.models import load_config
from tinybert_dist.stages import benchmark, prepare_corpus

MEASURED = ["teacher_forward", *STAGES]


def numbers(value):
    """All numbers in a nest of dicts and lists."""
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, bool | str) or value is None:
        return []
    return [value] if isinstance(value, int | float) else [x for part in value for x in numbers(part)]


def test_everything_is_measured_and_written_down(measured):
    result = measured.result
    assert list(result["measured"]) == MEASURED
    assert measured.json == json.loads(json.dumps(result))  # what is printed and what is read is the same
    found = numbers({k: v for k, v in result.items() if k != "options"})
    assert len(found) > 100 and all(math.isfinite(x) for x in found)
    for entry in result["measured"].values():
        positive = ("tokens_per_s", "examples_per_s", "seconds", "memory_bytes", "share_of_floor")
        assert all(entry[name] > 0 for name in positive)
    assert result["loader"]["tokens_per_s"] > 0
    assert result["processes"] == 1 and result["strategy"] == "one process" and result["precision"] == "no"
    assert {"device", "threads", "torch"} <= result["hardware"].keys() and "transformers" in result[
        "versions"
    ]
    assert result["options"]["train_batch_size"] == 8


def test_nothing_is_left_but_the_figures(measured):
    assert measured.left == ["out", "out/benchmark.json"]
    assert measured.temporary == []


def test_the_figures_of_a_stage_agree_with_one_another(measured):
    for name, entry in measured.result["measured"].items():
        assert entry["floor_tokens_per_s"] == pytest.approx(
            measured.result["matrix_products"]["no"]["best"] / entry["flops_per_token"]
        )
        assert entry["share_of_floor"] == pytest.approx(entry["tokens_per_s"] / entry["floor_tokens_per_s"])
        assert entry["padding_pct"] == 0 and entry["padded_tokens_per_s"] == entry["tokens_per_s"], name
        if name in {"general", "step_1", "step_2", "teacher"}:
            assert entry["examples"] == 8


def test_kept_logits_need_no_teacher_and_nobody_else_is_without(measured):
    forwards = {
        n: e["counters"]["teacher_forwards"]
        for n, e in measured.result["measured"].items()
        if "counters" in e
    }
    assert forwards == {"general": 1, "step_1": 1, "step_2": 0, "teacher": 0}
    for entry in measured.result["measured"].values():
        if "counters" in entry:
            assert entry["counters"]["steps"] == 1 and entry["counters"]["saved_bytes"] > 0


def test_the_floor_grows_with_what_a_stage_computes(measured):
    cost = {name: entry["flops_per_token"] for name, entry in measured.result["measured"].items()}
    assert cost["evaluate"] < cost["step_2"] < cost["general"] < cost["teacher"]
    assert cost["teacher_forward"] < cost["general"]


def test_the_table_tells_all_of_it(measured):
    for name in MEASURED:
        assert NAMES[name] in measured.printed
    for word in ("real tok/s", "of the floor", "where the time of a step goes", "bytes for backward"):
        assert word in measured.printed
    assert to_text(measured.json) in measured.printed
    assert advice(measured.json["sweep"]) in measured.printed
    assert "all figures in out/benchmark.json" in measured.printed


def test_without_models_and_text_both_are_made_up(tmp_path, tmp_path_factory, monkeypatch, capsys):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    file = tmp_path / "figures.json"
    changes = {"teacher_model": None, "student_model": None, "stages": ["step_2"], "train_batch_size": 4}
    benchmark.main(arguments(tmp_path, json=file, sweep_tokens=[0], **changes))
    result = json.loads(file.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert list(temporary.iterdir()) == []
    assert list(result["measured"]) == ["step_2"] and "sweep" not in result and "loader" not in result
    assert result["subject"]["teacher"].startswith("BERT-base: 12 layers x 768, 109,482,240 parameters")
    assert "sentences made up" in result["subject"]["text"]
    assert "tinybert-4l-312" in capsys.readouterr().out


def test_made_up_sentences_are_as_long_as_real_ones(workspace, accelerator):
    from tinybert_dist.benchmark.text import open_text

    made_up, tokenizer = open_text(options(workspace, max_seq_length=128), load_config(workspace / "teacher"))
    assert 22 < made_up.lengths.mean() < 30 and made_up.lengths.max() > 70
    assert len(tokenizer) == load_config(workspace / "teacher").vocab_size
    pairs, _ = open_text(
        options(workspace, mode="pairs", max_seq_length=64), load_config(workspace / "teacher")
    )
    assert pairs.lengths.mean() > 40


def test_a_prepared_corpus_is_measured_as_it_is(workspace, tmp_path):
    prepare_corpus.main([
        "--train_file_path", str(workspace / "corpus.txt"), "--teacher_model", str(workspace / "teacher"),
        "--output_dir", str(tmp_path / "tokens"), "--max_seq_length", "32", "--mode", "line",
    ])  # fmt: skip
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir() if path.is_file()}
    result = run(workspace, train_file_path=tmp_path / "tokens", stages=["general"], sweep_tokens=[0])
    assert result["measured"]["general"]["examples"] == 8
    assert {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["general", "step_3"]}, r"--stages step_3: give some of general, step_1"),
        ({"measure_s": -1}, r"--measure_s -1"),
        ({"warm_up_steps": 0}, r"--warm_up_steps 0"),
        ({"sweep_tokens": [-5]}, r"--sweep_tokens -5"),
        ({"layer_map": "9,9"}, r"--layer_map"),
        ({"teacher_model": None, "train_file_path": "x.txt"}, r"--train_file_path needs --teacher_model"),
        ({"train_file_path": "nowhere.txt"}, r"nowhere.txt"),
        ({"max_seq_length": 65}, r"--max_seq_length 65 is over the 64 positions"),
    ],
)
def test_mistakes_are_told(workspace, changes, message):
    with pytest.raises(UserError, match=message):
        run(workspace, **changes)


def test_a_dry_run_measures_nothing(workspace, tmp_path, capsys):
    assert run(workspace, output_dir=tmp_path / "out", dry_run="true") == {"outcome": "dry_run"}
    assert not (tmp_path / "out").exists()
    assert "would measure general, step_1" in capsys.readouterr().out
