"""The report card as one picture: what it is worth (score, size, latency) and how it was learned (curves)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_dist.report.card import ROLES, TITLES, headline

COLOURS = {"teacher": "#4c566a", "student": "#0b7a75", "label_only": "#c8553d"}
LOSS_COLOUR, METRIC_COLOUR, GRID = "#33415c", "#0b7a75", "#e3e6ea"
MAX_CURVES = 8
# one panel shows one loss: the total, unless the run has no such key
LOSS_KEYS = ("loss/total", "loss", "loss/prediction")


def draw(
    card: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path
) -> None:
    """Writes the PNG. `curves`: run name -> rows of its metrics.jsonl; the first eight runs are drawn."""
    # the object interface: pyplot would keep global state, and might look for a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = {
        name: rows for name, rows in list(curves.items())[:MAX_CURVES] if any(_loss(row) for row in rows)
    }
    num_rows = 1 if len(shown) <= 4 else 2
    columns = max(1, math.ceil(len(shown) / num_rows))
    figure = Figure(
        figsize=(12, 4.9 + 2.5 * num_rows),
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12),
        facecolor="white",
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f"{headline(card)}\n", fontsize=15, fontweight="bold", x=0.015, ha="left")
    parts = figure.subfigures(
        2 if shown else 1, 1, height_ratios=[3.9, 2.5 * num_rows] if shown else None, squeeze=False
    )
    _draw_comparison(parts[0, 0], card)
    if shown:
        _draw_curves(parts[1, 0], shown, num_rows, columns)
    figure.text(0.016, 0.955, _footnote(card), ha="left", va="top", fontsize=8, color="#6b7280")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_comparison(part: Any, card: Mapping[str, Any]) -> None:
    teacher = card["teacher"]
    score, size, latency = part.subplots(1, 3)
    roles = [role for role in ROLES if role in card]
    _draw_scores(score, card, roles)
    _draw_scatter(
        size,
        card,
        roles,
        [card[role]["parameters"] / 1e6 for role in roles],
        "parameters, millions (log scale)",
        "M",
    )
    size.set_title("score against size", **_title())
    _draw_scatter(
        latency,
        card,
        roles,
        [card[role]["latency_ms"]["p50"] for role in roles],
        "latency of one text, ms (log scale)",
        "ms",
    )
    latency.set_title("score against latency", **_title())
    for axes in (size, latency):
        axes.set_ylabel(f"{teacher['metric']}")


def _draw_scores(axes: Any, card: Mapping[str, Any], roles: Sequence[str]) -> None:
    values = [card[role]["score"] for role in roles]
    bars = axes.barh(
        [TITLES[role] for role in roles], values, color=[COLOURS[role] for role in roles], height=0.62
    )
    for bar, role, value in zip(bars, roles, values, strict=True):
        share = value / card["teacher"]["score"] if card["teacher"]["score"] > 0 else None
        label = f"{value:.3f}" + (
            f"  ({100 * share:.1f} %)" if share is not None and role != "teacher" else ""
        )
        axes.annotate(
            label,
            (max(value, 0), bar.get_y() + bar.get_height() / 2),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.set_xlim(min(0, *values), max(*values, 0.01) * 1.45)
    axes.set_title(f"{card['teacher']['metric']} on {card['teacher']['task']}", **_title())
    axes.set_xlabel(card["teacher"]["metric"])
    _clean(axes, "x")
    axes.tick_params(axis="y", length=0)


def _draw_scatter(
    axes: Any, card: Mapping[str, Any], roles: Sequence[str], x: Sequence[float], label: str, unit: str
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    y = [card[role]["score"] for role in roles]
    axes.set_xscale("log")
    for role, a, b in zip(roles, x, y, strict=True):
        axes.scatter([a], [b], s=110, color=COLOURS[role], zorder=3)
        # the teacher's name goes above its point, the others' below: student and teacher score nearly
        # alike, student and labels-only are equally large
        up = role == "teacher"
        axes.annotate(
            f"{TITLES[role]}, {a:.2g} {unit}" if a < 10 else f"{TITLES[role]}, {a:.0f} {unit}",
            (a, b),
            (0, 10 if up else -10),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            color=COLOURS[role],
            fontweight="bold",
        )
    centre, reach = math.sqrt(min(x) * max(x)), max(max(x) / min(x), 4) ** 0.5 * 2.2
    axes.set_xlim(centre / reach, centre * reach)
    room = max(max(y) - min(y), 0.02)
    axes.set_ylim(min(y) - 0.5 * room, max(y) + 0.35 * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    _clean(axes, "both")


def _draw_curves(
    part: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]], num_rows: int, columns: int
) -> None:
    panels = part.subplots(num_rows, columns, squeeze=False).ravel()
    for axes, (name, rows) in zip(panels, curves.items(), strict=False):
        points = [(row["step"], loss) for row in rows if (loss := _loss(row)) is not None]
        axes.plot(*zip(*points, strict=True), color=LOSS_COLOUR, linewidth=1.6)
        axes.set_title(name, **_title())
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss", color=LOSS_COLOUR)
        axes.set_ylim(bottom=0, top=1.08 * max(loss for _, loss in points))
        _clean(axes, "both")
        _draw_metric(axes, rows)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)


def _draw_metric(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    keys = sorted(
        {key for row in rows for key in row if key.startswith("eval/") and not key.endswith("loss")}
    )
    # one score beside the loss is enough; "score" if the run logged it, else its first metric
    key = next((key for key in keys if key.endswith("/accuracy")), keys[0] if keys else None)
    points = [
        (row["step"], row[key]) for row in rows if key is not None and isinstance(row.get(key), int | float)
    ]
    if not points:
        return
    right = axes.twinx()
    right.plot(*zip(*points, strict=True), color=METRIC_COLOUR, marker="o", markersize=4, linewidth=1.2)
    right.set_ylabel(str(key).removeprefix("eval/").replace("/", " "), color=METRIC_COLOUR)
    right.spines[["top", "left"]].set_visible(False)
    right.spines["right"].set_color(GRID)
    right.tick_params(colors=METRIC_COLOUR, length=0)


def _loss(row: Mapping[str, Any]) -> float | None:
    for key in LOSS_KEYS:
        if isinstance(row.get(key), int | float) and math.isfinite(row[key]):
            return row[key]
    return None


def _title() -> dict[str, Any]:
    return {"loc": "left", "fontsize": 11, "fontweight": "bold"}


def _clean(axes: Any, grid: str) -> None:
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bec6")


def _footnote(card: Mapping[str, Any]) -> str:
    hardware = card["hardware"]
    return (
        f"Speed: {card['teacher']['length_tokens']} tokens, batch 1, {hardware['device']}, "
        f"{hardware['threads']} thread{'s' * (hardware['threads'] != 1)}, torch {hardware['torch']}"
    )
