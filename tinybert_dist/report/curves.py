"""Loss curves of the report card: one panel per name, the training loss and the score on the dev data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinybert_dist.report.fonts import shortened

LOSS_COLOUR, METRIC_COLOUR, FRAME = "#33415c", "#0b7a75", "#e3e6ea"
# one panel shows one loss: the total, unless the run has no such key
LOSS_KEYS = ("loss/total", "loss", "loss/prediction")
LOG_FROM = 20  # largest over smallest loss

Row = Mapping[str, Any]


def has_loss(rows: Sequence[Row]) -> bool:
    """Whether there is anything to draw."""
    return any(_loss(row) is not None for row in rows)


def draw(part: Any, curves: Mapping[str, Sequence[Sequence[Row]]], num_rows: int, num_columns: int) -> None:
    """A panel for each name, with a line for each of its runs that logged a loss."""
    panels = part.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (name, runs) in zip(panels, curves.items(), strict=False):
        lines = [
            points
            for rows in runs
            if (points := [(row["step"], loss) for row in rows if (loss := _loss(row)) is not None])
        ]
        for points in lines:
            # a single point would be an invisible line
            axes.plot(
                *zip(*points, strict=True), color=LOSS_COLOUR, linewidth=1.5,
                alpha=1 if len(lines) == 1 else 0.55, marker="o" if len(points) == 1 else None, markersize=4,
            )  # fmt: skip
        axes.set_title(shortened(name, 34), loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss", color=LOSS_COLOUR)
        _scale(axes, [loss for points in lines for _, loss in points])
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 10000 else f"{x:g}")
        clean(axes, "both")
        _draw_metric(axes, runs)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)


def clean(axes: Any, grid: str) -> None:
    """Faint grid, no frame above and to the right."""
    axes.grid(True, axis=grid, color=FRAME, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8bec6")


def _scale(axes: Any, losses: Sequence[float]) -> None:
    lowest, highest = min(losses), max(losses)
    if lowest > 0 and highest / lowest > LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")  # the usual one writes a formula
    else:
        axes.set_ylim(bottom=min(0, lowest), top=1.08 * highest if highest > 0 else 1)


def _draw_metric(axes: Any, runs: Sequence[Sequence[Row]]) -> None:
    keys = sorted(
        {key for rows in runs for row in rows for key in row if key.startswith("eval/")}
        - {key for rows in runs for row in rows for key in row if key.endswith(("loss", "num_examples"))}
    )
    # one score beside the loss is enough; accuracy if the run logged it, else its first metric
    key = next((key for key in keys if key.endswith("/accuracy")), keys[0] if keys else None)
    if key is None:
        return
    right = axes.twinx()
    for rows in runs:
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if points:
            right.plot(
                *zip(*points, strict=True), color=METRIC_COLOUR, marker="o", markersize=3.5, linewidth=1.2,
                alpha=1 if len(runs) == 1 else 0.55,
            )  # fmt: skip
    right.set_ylabel(key.removeprefix("eval/").replace("/", " "), color=METRIC_COLOUR)
    right.spines[["top", "left"]].set_visible(False)
    right.spines["right"].set_color(FRAME)
    right.tick_params(colors=METRIC_COLOUR, length=0)


def _loss(row: Row) -> float | None:
    for key in LOSS_KEYS:
        if isinstance(row.get(key), int | float) and math.isfinite(row[key]):
            return row[key]
    return None
