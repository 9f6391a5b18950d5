"""The README.md of a saved model."""

from collections.abc import Mapping
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
) -> str:
    """Markdown with YAML front matter. `stage` picks the paragraph on the method; `sizes`, `settings` and
    `metrics` become tables. Folders are reduced to their last part: a card travels, the machine's paths do
    not."""
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
    loader = LOADERS.get(stage, "AutoModelForSequenceClassification")
    lines += ["", "## Use", "", "```python", f"from transformers import AutoTokenizer, {loader}", ""]
    lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")']
    lines += [f'model = {loader}.from_pretrained("path/to/this/folder")', "```", ""]
    return "\n".join(lines)


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
