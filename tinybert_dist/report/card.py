"""The report card as data (report.json) and as Markdown (report.md)."""

from collections.abc import Mapping
from typing import Any

from tinybert_dist.report.speed import describe_hardware

ROLES = ("teacher", "student", "label_only")
VARIANTS = ("onnx", "int8")
PLUS_MINUS = "\u00b1"
TITLES = {
    "teacher": "teacher",
    "student": "student",
    "label_only": "labels only",
    "onnx": "student, ONNX",
    "int8": "student, int8",
}


def build(models: Mapping[str, Mapping[str, Any]], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The card: one entry per model, then what the student keeps and gains against its teacher.

    `models[role]` holds score, scores, metric, task, splits, parameters, size_mb, speed ...; that of an
    exported file (VARIANTS) what export measured, and speed.
    """
    card: dict[str, Any] = {}
    for role in (*ROLES, *VARIANTS):
        if role in models:
            card[role] = dict(models[role]) | _summary(models[role])
    teacher, student = card["teacher"], card["student"]
    card["retention"] = _ratio(student["score"], teacher["score"])
    card["retention_std"] = _spread(student, teacher)
    if "label_only" in card:
        card["label_only_retention"] = _ratio(card["label_only"]["score"], teacher["score"])
        card["gain_over_label_only"] = round(student["score"] - card["label_only"]["score"], 4)
    card["times_smaller"] = _ratio(teacher["parameters"], student["parameters"])
    card["times_smaller_on_disk"] = _ratio(teacher["size_mb"], student["size_mb"])
    card["times_fewer_flops"] = {
        length: _ratio(flops, student["flops_per_text"][length])
        for length, flops in teacher["flops_per_text"].items()
    }
    card["times_faster"] = _ratio(teacher["latency_ms"]["p50"], student["latency_ms"]["p50"])
    card["times_throughput"] = _ratio(student["throughput_per_s"], teacher["throughput_per_s"])
    card["hardware"] = dict(hardware)
    return card


def entries(card: Mapping[str, Any]) -> list[str]:
    """The models and exported files on a card, in order."""
    return [role for role in (*ROLES, *VARIANTS) if role in card]


def title(card: Mapping[str, Any], role: str) -> str:
    """What a model is called, and over how many seeds its scores are."""
    seeds = card[role].get("seeds", 1)
    return TITLES[role] + (f" ({seeds} seeds)" if seeds > 1 else "")


def headline(card: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    share, deviation = card["retention"], card["retention_std"]
    share = "" if share is None else spread(100 * share, deviation and 100 * deviation, digits=1)
    kept = f"keeps {share} % of its teacher's score" if share else "is scored"
    return (
        f"The student {kept}, is {card['times_smaller']:.1f}x smaller "
        f"and answers {card['times_faster']:.1f}x faster."
    )


def to_markdown(card: Mapping[str, Any], picture: str = "report.png") -> str:
    """The card for people: one sentence, tables of scores, sizes and speed, what was measured where."""
    roles = [role for role in ROLES if role in card]
    teacher = card["teacher"]
    lines = [f"# Report card: {teacher['task']}", "", headline(card), ""]
    lines += _table("", [title(card, role) for role in roles], _model_rows(card, roles))
    if any(card[role]["seeds"] > 1 for role in roles):
        lines += ["", f"Scores over several seeds: mean {PLUS_MINUS} sample standard deviation."]
    if "label_only" in card:
        lines += [
            "",
            "`labels only` is the student's architecture trained on its labelled rows without a teacher: "
            f"distillation adds {card['gain_over_label_only']:+.3f} to its score.",
        ]
    every = entries(card)
    if len(every) > len(roles):
        names = ["student", *(name for name in VARIANTS if name in card)]
        lines += ["", "## The exported student", ""]
        lines += _table("", [TITLES[name] for name in names], _export_rows(card, names))
    timed = [role for role in every if "speed" in card[role]]
    for heading, cell in (("## Latency, ms (p50 / p95)", _latency), ("## Texts per second", _throughput)):
        rows = {
            f"{point['length_tokens']} tokens, batch {point['batch_size']}": [
                cell(card[role]["speed"][i]) for role in timed
            ]
            for i, point in enumerate(teacher["speed"])
        }
        lines += ["", heading, "", *_table("", [TITLES[role] for role in timed], rows)]
    lines += ["", f"The models took turns, on {describe_hardware(card['hardware'])}.", ""]
    for role in roles:
        lines.append(f"- {TITLES[role]}: {', '.join(f'`{folder}`' for folder in card[role]['folders'])}")
    if card.get("runs"):
        lines += ["", f"Curves: {'; '.join(card['runs'])}."]
    lines += ["", f"![Scores, sizes, speed and loss curves]({picture})", ""]
    return "\n".join(lines)


def tables(card: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Numbers of the card as tables (columns, rows): scores by metric, sizes, speed by length and batch."""
    every = entries(card)
    roles = [role for role in every if role in ROLES]
    scores = [
        [TITLES[role], split, metric, value, card[role]["splits_std"][split][metric], card[role]["seeds"]]
        for role in roles
        for split, metrics in card[role]["splits"].items()
        for metric, value in metrics.items()
    ]
    sizes = [
        [TITLES[role], card[role].get("parameters"), card[role]["size_mb"], card[role].get("score")]
        for role in every
    ]
    timed = [
        [
            TITLES[role], point["length_tokens"], point["batch_size"], point["latency_ms"]["p50"],
            point["latency_ms"]["p95"], point["throughput_per_s"],
        ]
        for role in every
        for point in card[role].get("speed", [])
    ]  # fmt: skip
    return {
        "scores": (["model", "split", "metric", "mean", "deviation", "seeds"], scores),
        "sizes": (["model", "parameters", "MB", "score"], sizes),
        "speed": (["model", "tokens", "batch", "ms p50", "ms p95", "texts per second"], timed),
    }


def spread(value: float, deviation: float | None, digits: int = 4) -> str:
    """The value, with a deviation behind a plus-minus sign if there is one."""
    return f"{value:.{digits}f}" + ("" if deviation is None else f" {PLUS_MINUS} {deviation:.{digits}f}")


def _model_rows(card: Mapping[str, Any], roles: list[str]) -> dict[str, list[str]]:
    teacher = card["teacher"]
    models = [card[role] for role in roles]
    rows = {
        f"**score** ({teacher['metric']})": [f"**{spread(m['score'], m['score_std'])}**" for m in models],
        "of the teacher's score": [_percent(_ratio(m["score"], teacher["score"])) for m in models],
    }
    for split, metrics in teacher["splits"].items():
        for metric in metrics:
            if metric != "num_examples":
                rows[f"{split} {metric}"] = [_metric(m, split, metric) for m in models]
    rows |= {
        "parameters": [f"{m['parameters']:,}" for m in models],
        "without embeddings": [f"{m['encoder_parameters']:,}" for m in models],
        "layers x width, heads": [f"{m['layers']} x {m['hidden_size']}, {m['heads']}" for m in models],
        "weights on disk, MB": [f"{m['size_mb']:.1f}" for m in models],
    }
    for length in teacher["flops_per_text"]:
        rows[f"MFLOPs per text of {length} tokens"] = [
            f"{m['flops_per_text'][length] / 1e6:,.1f}" for m in models
        ]
    return rows


def _export_rows(card: Mapping[str, Any], names: list[str]) -> dict[str, list[str]]:
    # every format's score on the data of the export, the student's among them
    scores = {"student": card["exported_from"], **{name: card[name] for name in names if name != "student"}}
    rows = {"MB": [f"{card[name]['size_mb']:.2f}" for name in names]}
    if "score" in card["exported_from"]:
        split = next(iter(card["exported_from"]["splits"]))
        metric = f"{card['teacher']['metric']} ({split})"
        rows[metric] = [f"{scores[name]['score']:.4f}" for name in names]
    return rows


def _metric(model: Mapping[str, Any], split: str, metric: str) -> str:
    value = model["splits"].get(split, {}).get(metric)
    return "-" if value is None else spread(value, model["splits_std"][split][metric])


def _latency(point: Mapping[str, Any]) -> str:
    return f"{point['latency_ms']['p50']:.2f} / {point['latency_ms']['p95']:.2f}"


def _throughput(point: Mapping[str, Any]) -> str:
    return f"{point['throughput_per_s']:,.0f}"


def _table(corner: str, columns: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def _summary(model: Mapping[str, Any]) -> dict[str, Any]:
    # short texts one by one, and as many as were measured together: the two ends people ask for
    if "speed" not in model:
        return {}
    first, shortest = model["speed"][0], model["speed"][0]["length_tokens"]
    last = [point for point in model["speed"] if point["length_tokens"] == shortest][-1]
    return {
        "length_tokens": shortest,
        "latency_batch_size": first["batch_size"],
        "latency_ms": first["latency_ms"],
        "throughput_batch_size": last["batch_size"],
        "throughput_per_s": last["throughput_per_s"],
    }


def _spread(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> float | None:
    if student["score_std"] is None or teacher["score"] <= 0:
        return None
    return round(student["score_std"] / teacher["score"], 4)


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _ratio(a: float, b: float) -> float | None:
    # a score may be zero or negative (Matthews): a share of it would mean nothing
    return round(a / b, 4) if b > 0 else None
