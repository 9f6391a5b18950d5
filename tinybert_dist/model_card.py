"""The README.md of a saved model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PAPER = "https://arxiv.org/abs/1909.10351"
LOADERS = {"general_distill": "AutoModel", "pretrain": "AutoModelForMaskedLM"}
METHOD = {
    "general_distill": (
        "A student learned the attention scores and hidden states of a general encoder on unlabelled text. "
        "It is a starting point: distil it on a task before use."
    ),
    "task_distill": (
        "A student learned a fine-tuned teacher on the task's own text: first its attention scores and "
        "hidden states, then its predictions."
    ),
    "pretrain": "A new encoder learned to fill in masked words of unlabelled text; fine-tune it before use.",
    "finetune_teacher": "An encoder was fine-tuned on the labels of the task; it serves as a teacher.",
}

ONNX_USE = """\
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
names = AutoConfig.from_pretrained(folder).id2label
session = onnxruntime.InferenceSession(f"{{folder}}/{file}")

texts = ["The first text.", "Another one, which is longer."]
inputs = tokenizer(texts, padding=True, truncation=True, max_length={max_length}, return_tensors="np")
wanted = [entry.name for entry in session.get_inputs()]
logits = session.run(["logits"], {{name: inputs[name] for name in wanted}})[0]
for text, row in zip(texts, logits):
    print(text, names[int(row.argmax())] if len(row) > 1 else "", row)"""


def model_card(
    *,
    title: str,
    stage: str,
    base_model: str | None = None,
    teacher: str | None = None,
    language: str | None = None,
    task: str | None = None,
    sizes: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    ancestry: Sequence[Mapping[str, Any]] = (),
    formats: Sequence[Mapping[str, Any]] = (),
    remarks: Sequence[str] = (),
    onnx_file: str | None = None,
    max_length: int | None = None,
) -> str:
    """Markdown with YAML front matter. `stage` picks the paragraph on the method; `sizes`, `settings` and
    `metrics` become tables, `ancestry` (see there) and `formats` tables of many columns; `remarks` follow
    the formats. `onnx_file`: how to run it, at most `max_length` tokens a text. Folders are reduced to their
    last part: a card travels, the machine's paths do not."""
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["tinybert", "knowledge-distillation", stage.replace("_", "-")],
    }
    if base_model and _is_hub_name(base_model):
        front["base_model"] = base_model
    if language:
        front["language"] = language
    if stage not in LOADERS:
        front["pipeline_tag"] = "text-classification"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {title}",
        "",
    ]
    lines.append(METHOD.get(stage, "Made by a distillation program for BERT-like encoders."))
    if stage in ("general_distill", "task_distill"):
        lines.append(f"The method is TinyBERT ([arXiv 1909.10351]({PAPER})).")
    facts = {"Task": task, "Teacher": teacher, "Starting point": base_model}
    known = {key: _travel(value) for key, value in facts.items() if value}
    for heading, table in (("Facts", known), ("Sizes", sizes), ("Metrics", metrics), ("Settings", settings)):
        if table:
            lines += ["", f"## {heading}", "", "| | |", "|---|---|"]
            lines += [f"| {_cell(key)} | {_cell(_travel(value))} |" for key, value in table.items()]
    for heading, rows in (("Formats", formats), ("How it was made", ancestry)):
        if rows:
            lines += ["", f"## {heading}", "", *_rows(rows)]
            lines += ["", *remarks] if heading == "Formats" and remarks else []
    loader = LOADERS.get(stage, "AutoModelForSequenceClassification")
    lines += ["", "## Use", "", "```python", f"from transformers import AutoTokenizer, {loader}", ""]
    lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")']
    lines += [f'model = {loader}.from_pretrained("path/to/this/folder")', "```", ""]
    if onnx_file:
        lines += ["With onnxruntime, and without torch:", "", "```python"]
        lines += [ONNX_USE.format(file=onnx_file, max_length=max_length), "```", ""]
    return "\n".join(lines)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [name for name in rows[0] if any(row.get(name) is not None for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = ("" if row.get(name) is None else _cell(row[name]) for name in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _is_hub_name(name: str) -> bool:
    return not Path(name).exists() and not name.startswith(("/", ".", "~")) and name.count("/") <= 1


def _travel(value: Any) -> Any:
    if isinstance(value, str | Path) and "/" in str(value) and not _is_hub_name(str(value)):
        return Path(value).name if "://" not in str(value) else value
    return value


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = f"{value:.4f}" if isinstance(value, float) and 1e-3 <= abs(value) < 1e6 else text
    return text.replace("|", "\\|").replace("\n", " ")
