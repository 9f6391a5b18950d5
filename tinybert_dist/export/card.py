"""The README.md of an exported folder."""

from collections.abc import Mapping
from typing import Any

from tinybert_dist.export.formats import FILES
from tinybert_dist.models import model_card
from tinybert_dist.report.speed import describe_hardware
from tinybert_dist.training.options import OPERATIONAL

FORMATS = {
    "transformers": "transformers, float32",
    "onnx": "ONNX, float32",
    "int8": "ONNX, dynamic int8",
}


def export_card(record: Mapping[str, Any], *, title: str, options: Mapping[str, Any]) -> str:
    """Markdown from export.json and the options of the run that made the model."""
    sizes = {"parameters": f"{record['parameters']:,}", "tokens per text at most": record["max_length"]}
    if record["labels"]:
        sizes["classes"] = ", ".join(record["labels"])
    sizes["text"] = "lower-cased by the tokenizer" if record["lower_case"] else "capitals kept"
    stage = record["stage"] or "export"
    onnx = next((FILES[name] for name in ("int8", "onnx") if name in record["formats"]), None)
    return model_card(
        title=title,
        # both steps of task distillation have one paragraph
        stage="task_distill" if stage.startswith("task_distill") else stage,
        task=record.get("task") or options.get("task_name"),
        teacher=options.get("teacher_model") if options.get("student_model") else None,
        base_model=options.get("student_model") or options.get("teacher_model"),
        sizes=sizes,
        metrics=record["trained"],
        settings={k: v for k, v in options.items() if v is not None and k not in OPERATIONAL},
        ancestry=record["ancestry"],
        formats=[_format(name, entry, record) for name, entry in record["formats"].items()],
        remarks=_remarks(record),
        onnx_file=onnx,
        max_length=record["max_length"],
    )


def _format(name: str, entry: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    row = {"format": FORMATS[name], "file": f"`{entry['file']}`", "MB": f"{entry['size_mb']:.2f}"}
    if "score" in entry:
        row[f"{record['metric']} ({next(iter(entry['splits']))})"] = f"{entry['score']:.4f}"
    largest = max(point["batch_size"] for point in entry["speed"])
    for point in entry["speed"]:
        size, latency = f"{point['batch_size']} x {point['length_tokens']}", point["latency_ms"]
        if point["batch_size"] == min(p["batch_size"] for p in entry["speed"]):
            row[f"{size}, ms (p50 / p95)"] = f"{latency['p50']:.2f} / {latency['p95']:.2f}"
        if point["batch_size"] == largest:
            row[f"{size}, texts per second"] = f"{point['throughput_per_s']:,.0f}"
    return row


def _remarks(record: Mapping[str, Any]) -> list[str]:
    lines = [
        "Speed: a batch of texts x tokens, the formats taking turns, on "
        f"{describe_hardware(record['hardware'])}."
    ]
    if not any("score" in entry for entry in record["formats"].values()):
        lines.append("The formats were not scored: their logits were compared on made-up batches.")
    for name, entry in record["formats"].items():
        if name != "transformers":
            share, difference = entry.get("agreement"), entry["largest_logit_difference"]
            agrees = "" if share is None else f", the same prediction for {100 * share:.2f} % of the texts"
            lines.append(f"{FORMATS[name]}: logits within {difference:.2g} on random tokens{agrees}.")
    return ["  \n".join(lines)]
