"""The report card as one picture: what it is worth (score, size, speed), and how it was learned (curves)."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_dist.report import curves as loss_curves
from tinybert_dist.report.card import entries, headline, spread, title
from tinybert_dist.report.fonts import drawable, families_for, shortened
from tinybert_dist.report.speed import describe_hardware

COLOURS = {
    "teacher": "#4c566a",
    "student": "#0b7a75",
    "label_only": "#c8553d",
    "onnx": "#58a8a4",
    "int8": "#9fd0cd",
}
FAINT = "#6b7280"
WIDTH, CURVE_COLUMNS, CURVE_HEIGHT = 14.0, 4, 2.5
DPI = 130
CHARACTER = 0.027  # width of one, of a panel's
NOT_HERE = "not timed on this device"

Row = Mapping[str, Any]


class Bar(NamedTuple):
    """Length (None: no bar), what stands behind it, and how far a thin one goes on."""

    value: float | None
    words: str
    tail: float = 0


def draw(card: Row, curves: Mapping[str, Sequence[Sequence[Row]]], path: str | Path) -> None:
    """Writes the PNG. `curves`: name -> the rows of metrics.jsonl of each of its runs."""
    # the object interface: pyplot would keep global state, and might look for a display
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    families, missing = families_for("".join([card["teacher"]["task"], card["teacher"]["metric"], *curves]))
    task = drawable(card["teacher"]["task"], missing, "the task")
    named: dict[str, Sequence[Sequence[Row]]] = {}
    for number, (name, runs) in enumerate(curves.items(), 1):
        if any(loss_curves.has_loss(rows) for rows in runs):
            shown = drawable(name, missing, f"run {number}")
            named[f"run {number}" if shown in named else shown] = runs
    num_rows = math.ceil(len(named) / CURVE_COLUMNS)
    num_columns = math.ceil(len(named) / max(1, num_rows))
    top = 1.1 + 0.48 * len(entries(card))
    # a $ in a name is no formula
    with mpl.rc_context({"font.family": families, "text.parse_math": False, "font.size": 9}):
        figure = Figure(
            figsize=(WIDTH, 0.95 + top + CURVE_HEIGHT * num_rows),
            layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1),
            facecolor="white",
        )
        FigureCanvasAgg(figure)
        heights = [0.95, top, *([CURVE_HEIGHT * num_rows] if named else [])]
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _write_title(parts[0], card, task, missing)
        _draw_bars(parts[1], card)
        if named:
            loss_curves.draw(parts[2], named, num_rows, num_columns)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _write_title(part: Any, card: Row, task: str, missing: set[str]) -> None:
    sentence = textwrap.shorten(headline(card), 130, placeholder=" \u2026")
    part.text(0.012, 0.80, sentence, fontsize=15, fontweight="bold", ha="left", va="center")
    facts = [
        f"Task: {shortened(task, 60)}.  Speed: {describe_hardware(card['hardware'])}; models taking turns.",
        *(["No font installed here has all characters of the names; report.md has them."] if missing else []),
    ]
    for line, y in zip(facts, (0.40, 0.18), strict=False):
        part.text(0.012, y, shortened(line, 190), fontsize=9, color=FAINT, ha="left", va="center")


def _draw_bars(part: Any, card: Row) -> None:
    roles, teacher = entries(card), card["teacher"]
    one, many = (
        f"{teacher[f'{what}_batch_size']} x {teacher['length_tokens']} tokens"
        for what in ("latency", "throughput")
    )
    contents: list[tuple[str, Callable[[str], Bar]]] = [
        (shortened(teacher["metric"], 30), lambda role: _score(card, role)),
        ("weights on disk, MB", lambda role: _size(card[role])),
        (f"latency, ms ({one})", lambda role: _latency(card[role])),
        (f"texts per second ({many})", lambda role: _throughput(card[role])),
    ]
    panels = part.subplots(1, len(contents), sharey=True)
    for axes, (name, bar) in zip(panels, contents, strict=True):
        _draw_panel(axes, name, roles, [bar(role) for role in roles])
    panels[0].set_yticks(range(len(roles)), [title(card, role) for role in roles], fontsize=10)
    panels[0].invert_yaxis()
    _mark_scores(panels[0], card, roles)


def _draw_panel(axes: Any, name: str, roles: Sequence[str], bars: Sequence[Bar]) -> None:
    right = 1e-9
    for row, (role, bar) in enumerate(zip(roles, bars, strict=True)):
        end = max(bar.value or 0, bar.tail, 0)
        axes.barh(row, bar.value or 0, color=COLOURS[role], height=0.62)
        axes.barh(row, bar.tail, color=COLOURS[role], height=0.3, alpha=0.35, zorder=0.9)
        axes.annotate(
            bar.words, (end, row), (6, 0), textcoords="offset points", va="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8}, zorder=4,
        )  # fmt: skip
        widest = max(map(len, bar.words.splitlines()))
        right = max(right, end / max(0.25, 0.95 - CHARACTER * widest))
    axes.set_xlim(min(0, *(bar.value or 0 for bar in bars), 0), right)
    axes.set_title(name, loc="left", fontsize=10.5, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    loss_curves.clean(axes, "x")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}")


def _mark_scores(axes: Any, card: Row, roles: Sequence[str]) -> None:
    axes.axvline(
        card["teacher"]["score"], color=COLOURS["teacher"], linewidth=1, linestyle=(0, (4, 3)), zorder=1
    )
    for row, role in enumerate(roles):
        each = card[role].get("scores", [])
        if len(each) > 1:
            axes.scatter(each, [row] * len(each), s=14, color="#1f2937", zorder=3, linewidths=0)


def _score(card: Row, role: str) -> Bar:
    if (value := card[role].get("score")) is None:
        return Bar(None, "not scored")
    deviation, teacher = card[role].get("score_std"), card["teacher"]["score"]
    words = spread(value, deviation, digits=3)
    if role != "teacher" and teacher > 0:
        words += f"\n{100 * value / teacher:.1f} % of teacher"
    return Bar(value, words)


def _size(model: Row) -> Bar:
    words = f"{model['size_mb']:.1f} MB"
    if "parameters" in model:
        words += f"\n{model['parameters'] / 1e6:.1f} M parameters"
    return Bar(model["size_mb"], words)


def _latency(model: Row) -> Bar:
    if "latency_ms" not in model:
        return Bar(None, NOT_HERE)
    p50, p95 = model["latency_ms"]["p50"], model["latency_ms"]["p95"]
    return Bar(p50, f"{p50:.2f}\np95 {p95:.2f}", p95)


def _throughput(model: Row) -> Bar:
    if "throughput_per_s" not in model:
        return Bar(None, NOT_HERE)
    return Bar(model["throughput_per_s"], f"{model['throughput_per_s']:,.0f}")
