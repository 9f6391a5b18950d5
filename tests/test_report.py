import json

import pytest
from PIL import Image
from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.config import UserError
from tinybert_dist.files import read_json
from tinybert_dist.report import card, figures, measure
from tinybert_dist.stages import report

SCORES = {"teacher": 0.8, "student": 0.76, "label_only": 0.6}
WIDTHS = {"teacher": (3, 48), "student": (1, 16), "label_only": (1, 16)}


@pytest.fixture
def folders(tmp_path):
    for role, (layers, width) in WIDTHS.items():
        config = BertConfig(
            vocab_size=200,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * width,
            max_position_embeddings=64,
            num_labels=3,
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path / role)
        write_evaluation(tmp_path / role, SCORES[role])
    curve = tmp_path / "runs" / "step 2"
    curve.mkdir(parents=True)
    rows = [{"step": s, "loss/total": 2 / (1 + s), "eval/dev/accuracy": 0.5 + s / 100} for s in range(1, 20)]
    (curve / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write_evaluation(folder, score, **changed):
    folder.mkdir(exist_ok=True)
    splits = {"dev": {"accuracy": score - 0.01, "loss": 0.5, "num_examples": 70}}
    content = {"task": "toy", "selection_metric": "accuracy", "score": score, "step": 9, "splits": splits}
    (folder / "eval_results.json").write_text(json.dumps(content | changed))


def config_for(folder, **options):
    models = {f"{role}_model": str(folder / role) for role in SCORES}
    small = {"length_tokens": 8, "batch_size": 4, "repeats": 3, "device": "cpu"}
    runs = {"run_folders": [f"prediction={folder / 'runs' / 'step 2'}"], "output_dir": str(folder / "report")}
    return report.ReportConfig(**(models | small | runs | options))


def test_card_holds_scores_sizes_and_speed(folders, capsys):
    result = report.run(config_for(folders))
    assert read_json(folders / "report" / "report.json") == result
    for role, score in SCORES.items():
        entry = result[role]
        assert entry["score"] == score
        model = BertForSequenceClassification.from_pretrained(folders / role)
        assert entry["parameters"] == model.num_parameters()
        embeddings = sum(p.numel() for p in model.bert.embeddings.parameters())
        assert entry["encoder_parameters"] == model.num_parameters() - embeddings
        assert entry["size_mb"] == round((folders / role / "model.safetensors").stat().st_size / 1e6, 3)
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert entry["throughput_per_s"] > 0
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
    write_evaluation(folders / "eval", 0.4)
    result = report.run(config_for(folders, student_eval=str(folders / "eval"), label_only_model=None))
    assert result["retention"] == pytest.approx(0.5)
    assert "label_only" not in result and "labels only" not in (folders / "report" / "report.md").read_text()


def test_mistakes_name_the_file_and_the_remedy(folders):
    with pytest.raises(UserError, match=r"runs: no eval_results\.json\. Run the evaluate stage"):
        report.run(config_for(folders, teacher_eval=str(folders / "runs")))
    with pytest.raises(UserError, match=r"teacher: no metrics\.jsonl"):
        report.run(config_for(folders, run_folders=[str(folders / "teacher")]))
    with pytest.raises(UserError, match="--repeats 0"):
        report.run(config_for(folders, repeats=0))
    with pytest.raises(UserError, match="--device tpu"):
        report.run(config_for(folders, device="tpu"))
    write_evaluation(folders / "student", 0.7, task="another")
    with pytest.raises(UserError, match="differ in task: teacher toy, student another"):
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


def test_models_take_turns_when_they_are_timed():
    calls = []
    turns = {name: (lambda name=name: calls.append(name)) for name in ("teacher", "student")}
    seconds = measure._take_turns(turns, 3)
    assert calls == ["teacher", "student"] * 3
    assert [len(values) for values in seconds.values()] == [3, 3]


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
