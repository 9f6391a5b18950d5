"""Model folders with evaluations, and a report over them."""

import json

from transformers import BertConfig, BertForSequenceClassification

from tinybert_dist.stages import report

SCORES = {"teacher": 0.8, "student": 0.76, "label_only": 0.6}
WIDTHS = {"teacher": (3, 48), "student": (1, 16), "label_only": (1, 16)}
SMALL = {
    "length_tokens": [8, 16],
    "batch_size": [1, 4],
    "repeats": 3,
    "device": "cpu",
    "wandb_mode": "disabled",
}


def write_models(folder):
    """teacher/, student/, label_only/ and the curve of a run."""
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
        BertForSequenceClassification(config).save_pretrained(folder / role)
        write_evaluation(folder / role, SCORES[role])
    write_curve(folder / "runs" / "step 2", 20)
    return folder


def write_curve(folder, num_rows):
    folder.mkdir(parents=True)
    rows = [
        {"step": s, "loss/total": 2 / (1 + s), "eval/dev/accuracy": 0.5 + s / 100} for s in range(1, num_rows)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(folder, score, **changed):
    folder.mkdir(exist_ok=True)
    splits = {"dev": {"accuracy": score - 0.01, "loss": 0.5, "num_examples": 70}}
    content = {"task": "toy", "selection_metric": "accuracy", "score": score, "step": 9, "splits": splits}
    (folder / "eval_results.json").write_text(json.dumps(content | changed))
    return str(folder)


def config_for(folder, **options):
    models = {f"{role}_model": [str(folder / role)] for role in SCORES}
    runs = {"run_folders": [f"prediction={folder / 'runs' / 'step 2'}"], "output_dir": str(folder / "report")}
    return report.ReportConfig(**(models | SMALL | runs | options))
