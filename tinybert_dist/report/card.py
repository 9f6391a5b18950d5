"""The report card as data (report.json) and as Markdown (report.md)."""

from collections.abc import Mapping
from typing import Any

ROLES = ("teacher", "student", "label_only")
TITLES = {"teacher": "teacher", "student": "student", "label_only": "labels only"}


def build(models: Mapping[str, Mapping[str, Any]], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The card: one entry per model, then what the student keeps and gains against its teacher.

    `models[role]` holds score, metric, task, splits, parameters, size_mb, latency_ms, throughput_per_s ...
    """
    card: dict[str, Any] = {role: dict(models[role]) for role in ROLES if role in models}
    teacher, student = models["teacher"], models["student"]
    card["retention"] = _ratio(student["score"], teacher["score"])
    if "label_only" in models:
        card["label_only_retention"] = _ratio(models["label_only"]["score"], teacher["score"])
        card["gain_over_label_only"] = round(student["score"] - models["label_only"]["score"], 4)
    card["times_smaller"] = _ratio(teacher["parameters"], student["parameters"])
    card["times_smaller_on_disk"] = _ratio(teacher["size_mb"], student["size_mb"])
    card["times_faster"] = _ratio(teacher["latency_ms"]["p50"], student["latency_ms"]["p50"])
    card["times_throughput"] = _ratio(student["throughput_per_s"], teacher["throughput_per_s"])
    card["hardware"] = dict(hardware)
    return card


def headline(card: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    kept = (
        f"keeps {100 * card['retention']:.1f} % of its teacher's score" if card["retention"] else "is scored"
    )
    return (
        f"The student {kept}, is {card['times_smaller']:.1f}x smaller "
        f"and answers {card['times_faster']:.1f}x faster."
    )


def to_markdown(card: Mapping[str, Any], picture: str = "report.png") -> str:
    """The card for people: one sentence, one table, what was measured where."""
    roles = [role for role in ROLES if role in card]
    teacher = card["teacher"]
    lines = [
        f"# Report card: {teacher['task']}",
        "",
        headline(card),
        "",
        f"| | {' | '.join(TITLES[role] for role in roles)} |",
        f"|---|{'---:|' * len(roles)}",
    ]
    for title, cell in _rows(teacher).items():
        lines.append(f"| {title} | {' | '.join(cell(card[role]) for role in roles)} |")
    if "label_only" in card:
        lines += [
            "",
            "`labels only` is the student's architecture trained on its labelled rows without a teacher: "
            f"distillation adds {card['gain_over_label_only']:+.3f} to its score.",
        ]
    hardware = card["hardware"]
    threads = f"{hardware['threads']} thread{'s' * (hardware['threads'] != 1)}"
    lines += [
        "",
        f"Speed: {teacher['length_tokens']} tokens per text, the models taking turns, on "
        f"{hardware['device']}, {threads}, torch {hardware['torch']}, Python {hardware['python']}.",
        "",
        *(f"- {TITLES[role]}: `{card[role]['folder']}`" for role in roles),
        "",
        f"![Loss curves, score against size and latency]({picture})",
        "",
    ]
    return "\n".join(lines)


def _rows(teacher: Mapping[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {
        f"**score** ({teacher['metric']})": lambda m: f"**{m['score']:.4f}**",
        "of the teacher's score": lambda m: _percent(_ratio(m["score"], teacher["score"])),
    }
    for split, metrics in teacher["splits"].items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                rows[f"{split} {metric}"] = _metric_cell(split, metric)
    rows |= {
        "parameters": lambda m: f"{m['parameters']:,}",
        "without embeddings": lambda m: f"{m['encoder_parameters']:,}",
        "layers x width, heads": lambda m: f"{m['layers']} x {m['hidden_size']}, {m['heads']}",
        "weights on disk, MB": lambda m: f"{m['size_mb']:.1f}",
        "latency of one text, ms (p50)": lambda m: f"{m['latency_ms']['p50']:.2f}",
        "latency of one text, ms (p95)": lambda m: f"{m['latency_ms']['p95']:.2f}",
        f"texts per second, batch {teacher['batch_size']}": lambda m: f"{m['throughput_per_s']:,.0f}",
    }
    return rows


def _metric_cell(split: str, metric: str):
    def cell(model: Mapping[str, Any]) -> str:
        value = model["splits"].get(split, {}).get(metric)
        return f"{value:.4f}" if isinstance(value, float) else "-"

    return cell


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _ratio(a: float, b: float) -> float | None:
    # a score may be zero or negative (Matthews): a share of it would mean nothing
    return round(a / b, 4) if b > 0 else None
