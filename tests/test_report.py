"""The report card: its numbers, its words, and what it needs."""

import json

import pytest
import wandb_files
from PIL import Image
from report_folders import SCORES, config_for, write_curve, write_evaluation, write_models
from transformers import BertForSequenceClassification

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.model_flops import classifier_flops
from tinybert_dist.report import card, figures, measure
from tinybert_dist.stages import report


@pytest.fixture
def folders(tmp_path):
    return write_models(tmp_path)


def test_card_holds_scores_sizes_and_speed(folders, capsys):
    result = report.run(config_for(folders))
    assert read_json(folders / "report" / "report.json") == result
    for role, score in SCORES.items():
        entry = result[role]
        assert entry["score"] == score and entry["seeds"] == 1 and entry["score_std"] is None
        model = BertForSequenceClassification.from_pretrained(folders / role)
        assert entry["parameters"] == model.num_parameters()
        embeddings = sum(p.numel() for p in model.bert.embeddings.parameters())
        assert entry["encoder_parameters"] == model.num_parameters() - embeddings
        assert entry["size_mb"] == round((folders / role / "model.safetensors").stat().st_size / 1e6, 3)
        assert entry["flops_per_text"] == {str(n): classifier_flops(model.config, n) for n in (8, 16)}
        sizes = [(point["length_tokens"], point["batch_size"]) for point in entry["speed"]]
        assert sizes == [(8, 1), (8, 4), (16, 1), (16, 4)]
        assert entry["latency_ms"] == entry["speed"][0]["latency_ms"]
        assert entry["throughput_per_s"] == entry["speed"][1]["throughput_per_s"] > 0
        assert all(0 < p["latency_ms"]["p50"] <= p["latency_ms"]["p95"] for p in entry["speed"])
    assert result["retention"] == pytest.approx(0.95)
    assert result["label_only_retention"] == pytest.approx(0.75)
    assert result["times_smaller"] == pytest.approx(
        result["teacher"]["parameters"] / result["student"]["parameters"], rel=1e-3
    )
    assert result["hardware"]["threads"] >= 1 and result["runs"] == ["prediction"]
    markdown = (folders / "report" / "report.md").read_text()
    assert markdown in capsys.readouterr().out
    assert "keeps 95.0 % of its teacher's score" in markdown
    assert "| **score** (accuracy) | **0.8000** | **0.7600** | **0.6000** |" in markdown
    assert "| dev accuracy | 0.7900 | 0.7500 | 0.5900 |" in markdown and "| 16 tokens, batch 4 |" in markdown
    with Image.open(folders / "report" / "report.png") as image:
        assert image.width >= 1200 and len(image.convert("L").getcolors()) > 50


def test_unchanged_inputs_are_not_measured_again(folders, capsys):
    first = report.run(config_for(folders))
    capsys.readouterr()
    assert report.run(config_for(folders)) == first
    output = capsys.readouterr().out
    assert "up to date" in output and "Report card: toy" in output
    write_evaluation(folders / "student", 0.72)
    assert report.run(config_for(folders))["retention"] == pytest.approx(0.9)


def test_scores_come_from_the_evaluation_folder_when_given(folders):
    evaluation = write_evaluation(folders / "eval", 0.4)
    result = report.run(config_for(folders, student_eval=[evaluation], label_only_model=[]))
    assert result["retention"] == pytest.approx(0.5)
    assert "label_only" not in result and "labels only" not in (folders / "report" / "report.md").read_text()


def test_seeds_give_mean_and_sample_deviation(folders, monkeypatch):
    """0.70, 0.76, 0.79: mean 0.75, sample deviation sqrt(0.0021)."""
    scores = (0.70, 0.76, 0.79)
    evaluations = [write_evaluation(folders / f"eval_{score}", score) for score in scores]
    students = [str(folders / name) for name in ("student", "label_only", "student")]
    loaded = []
    load = report.load_classifier
    monkeypatch.setattr(report, "load_classifier", lambda name: loaded.append(name) or load(name))
    for seed in (1, 2):
        write_curve(folders / "runs" / f"seed {seed}", 5)
    runs = [f"prediction={folders / 'runs' / name}" for name in ("step 2", "seed 1", "seed 2")]
    config = config_for(folders, student_model=students, student_eval=evaluations, run_folders=runs)
    result = report.run(config)
    assert loaded == [str(folders / role) for role in SCORES], "speed is measured on the first of each"
    student = result["student"]
    assert student["scores"] == list(scores) and student["seeds"] == 3 and result["runs"] == ["prediction"]
    assert student["score"] == pytest.approx(0.75)
    assert student["score_std"] == pytest.approx(0.0021**0.5)
    assert student["splits"]["dev"]["accuracy"] == pytest.approx(0.74)
    assert student["splits_std"]["dev"]["accuracy"] == pytest.approx(0.0021**0.5)
    assert result["retention"] == pytest.approx(0.9375)
    assert result["retention_std"] == pytest.approx(0.0021**0.5 / 0.8, abs=1e-4)
    markdown = (folders / "report" / "report.md").read_text()
    assert "keeps 93.8 \u00b1 5.7 % of its teacher's score" in markdown
    assert "| **0.8000** | **0.7500 \u00b1 0.0458** | **0.6000** |" in markdown
    assert "student (3 seeds)" in markdown and markdown.count("`../student`") == 2


def test_a_metric_that_one_seed_lacks_is_left_out():
    both = [
        {"score": 1.0, "splits": {"dev": {"f1": 0.5, "accuracy": 1.0}}},
        {"score": 3, "splits": {"dev": {"accuracy": 3}}},
    ]
    result = measure.over_seeds(both)
    assert result["splits"] == {"dev": {"accuracy": 2.0}} and result["score"] == 2.0
    assert result["score_std"] == pytest.approx(2**0.5)


def test_wandb_has_the_picture_the_tables_and_the_figures(folders):
    result = report.run(config_for(folders, wandb_mode="offline", run_group="all"))
    (file,) = wandb_files.run_files(folders / "report")
    assert {(run.job_type, run.run_group) for run in wandb_files.runs(file)} == {("report", "all")}
    kinds = {
        key.partition("/")[0]: row[key]
        for row in wandb_files.history(file)
        for key in row
        if key.endswith("/_type")
    }
    assert kinds == {"report": "image-file", **dict.fromkeys(("scores", "sizes", "speed"), "table-file")}
    summary = wandb_files.summary(file)
    assert summary["retention"] == result["retention"] and summary["times_faster"] == result["times_faster"]


def test_mistakes_name_the_file_and_the_remedy(folders):
    with pytest.raises(UserError, match=r"runs: no eval_results\.json\. Run the evaluate stage"):
        report.run(config_for(folders, teacher_eval=[str(folders / "runs")]))
    with pytest.raises(UserError, match="--student_eval names 2 folders, --student_model 1"):
        report.run(config_for(folders, student_eval=[str(folders / "student")] * 2))
    with pytest.raises(UserError, match=r"teacher: no metrics\.jsonl"):
        report.run(config_for(folders, run_folders=[str(folders / "teacher")]))
    with pytest.raises(UserError, match=r"teacher: no export\.json\. Give the output folder of the export"):
        report.run(config_for(folders, export_folder=str(folders / "teacher")))
    with pytest.raises(UserError, match="--repeats 0"):
        report.run(config_for(folders, repeats=0))
    with pytest.raises(UserError, match="--batch_size 4 0: give numbers of at least 1"):
        report.run(config_for(folders, batch_size=[4, 0]))
    with pytest.raises(UserError, match="--length_tokens 65: the models have 64 positions"):
        report.run(config_for(folders, length_tokens=[65]))
    with pytest.raises(UserError, match="--device tpu"):
        report.run(config_for(folders, device="tpu"))
    write_evaluation(folders / "student", 0.7, task="another")
    with pytest.raises(UserError, match="differ in task: label_only toy, student another, teacher toy"):
        report.run(config_for(folders))
    (folders / "student" / "eval_results.json").write_text("{")
    with pytest.raises(UserError, match=r"eval_results\.json: not valid JSON"):
        report.run(config_for(folders))


def test_curve_merges_resumed_steps_and_forgives_only_a_cut_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 2, "loss/total": 5}\n{"step": 1, "loss/total": 9}\n{"step": 2, "loss/total": 4}\n{"st'
    )
    assert measure.read_curve(tmp_path) == [{"step": 1, "loss/total": 9}, {"step": 2, "loss/total": 4}]
    file.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a metrics row"):
        measure.read_curve(tmp_path)


def test_retention_of_a_score_that_is_not_positive_is_left_out(folders, tmp_path):
    result = report.run(config_for(folders))
    entries = {role: result[role] for role in SCORES}
    entries["teacher"] = entries["teacher"] | {"score": 0.0}
    built = card.build(entries, result["hardware"])
    assert built["retention"] is None
    assert "| of the teacher's score | - | - | - |" in card.to_markdown(built)
    figures.draw(built, {}, tmp_path / "no_curves.png")
    with Image.open(tmp_path / "no_curves.png") as image:
        assert image.height > 300


def test_nothing_written_names_a_place_of_this_machine(folders):
    report.run(config_for(folders))
    for name in ("report.json", "report.md"):
        assert str(folders) not in (folders / "report" / name).read_text()
    assert json.loads((folders / "report" / "report.json").read_text())["student"]["folders"] == [
        "../student"
    ]
