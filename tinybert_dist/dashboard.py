"""The wandb dashboard of a project, as data: sections of panels over the keys that runs write.

`workspace` makes wandb's own workspace of it (extra `dashboard`), `outline` a text to read without wandb.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tinybert_dist.config import UserError
from tinybert_dist.training.wandb_run import STEP_KEY

SPLIT = r"(dev|test)[^/]*"
SCORES = "accuracy|f1|f1_macro|mcc|pearson|spearman|pearson_spearman"


@dataclass(frozen=True)
class Panel:
    """lines: over the optimizer step; bars: one value of each run; table, picture: by its key.

    keys: exact names; pattern: a regular expression of lines whose names depend on model and data.
    """

    kind: Literal["lines", "bars", "table", "picture", "settings"]
    title: str
    keys: tuple[str, ...] = ()
    pattern: str = ""
    log_y: bool = False

    def shows(self, key: str) -> bool:
        """Whether a key of a run appears in this panel."""
        return key in self.keys or bool(self.pattern and re.search(self.pattern, key))


@dataclass(frozen=True)
class Section:
    """A heading and its panels."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = False


def _lines(title: str, *keys: str, pattern: str = "", log_y: bool = False) -> Panel:
    return Panel("lines", title, keys, pattern, log_y)


def _augment(*counts: str) -> tuple[str, ...]:
    return tuple(f"augment/{count}" for count in counts)


def _corpus(*figures: str) -> tuple[str, ...]:
    return tuple(f"corpus/{figure}" for figure in figures)


SECTIONS = (
    Section(
        "At a glance",
        (
            Panel("bars", "score", ("score",)),
            _lines("loss", "loss/total", log_y=True),
            _lines("score on dev", "eval/score"),
        ),
        is_open=True,
    ),
    Section(
        "Loss",
        (
            _lines("parts of distillation", "loss/attention", "loss/hidden", "loss/prediction", log_y=True),
            _lines("labels", "loss/label"),
            _lines("masked words", "loss/masked_lm"),
        ),
        is_open=True,
    ),
    Section(
        "Loss, layer by layer",
        (
            _lines("attention scores", pattern=r"^loss/attention/layer_\d+$", log_y=True),
            _lines("hidden states", pattern=r"^loss/hidden/(embeddings|layer_\d+)$", log_y=True),
        ),
    ),
    Section(
        "Evaluation",
        (
            _lines("scores", pattern=f"^eval/{SPLIT}/({SCORES})$"),
            _lines("loss against the labels", pattern=f"^eval/{SPLIT}/(loss|mse)$"),
            Panel("bars", "best score", ("best/score",)),
            Panel("bars", "parameters", ("parameters",)),
            _lines("examples", pattern=f"^eval/{SPLIT}/num_examples$"),
        ),
        is_open=True,
    ),
    Section("Predictions, mistakes first", (Panel("table", "predictions", ("predictions",)),)),
    Section("Optimizer", (_lines("learning rate", "learning_rate"), _lines("gradient norm", "grad_norm"))),
    Section(
        "Throughput",
        (
            _lines("real tokens per second", "throughput/tokens_per_s"),
            _lines("optimizer steps per second", "throughput/steps_per_s"),
            _lines("padding, %", "throughput/padding_pct"),
            _lines("waiting for data, %", "throughput/data_wait_pct"),
            _lines("memory, GiB", "throughput/memory_gib"),
            _lines("model FLOPs utilisation, %", "throughput/mfu_pct"),
        ),
    ),
    Section(
        "Data",
        (
            _lines("epoch", "epoch"),
            _lines("real tokens seen", "data/tokens_seen"),
            _lines("records read", "data/records_read"),
            _lines("bad records", "data/bad_records"),
        ),
    ),
    Section(
        "Corpus",
        (
            Panel("bars", "rows and sentences", _corpus("rows", "sentences", "documents")),
            Panel("bars", "tokens", _corpus("tokens", "cut_tokens")),
            Panel("bars", "tokens prepared per second", _corpus("tokens_per_s")),
            Panel("bars", "unknown pieces, %; bad records", _corpus("unknown_pct", "bad_records")),
        ),
    ),
    Section(
        "Augmentation",
        (
            Panel("table", "augmentations", ("augmentations",)),
            Panel("bars", "examples and new ones", _augment("examples", "new_rows", "bad_records")),
            Panel("bars", "words", _augment("sentences", "words", "by_model", "by_vectors", "unchanged")),
            Panel(
                "bars",
                "queries",
                _augment("queries_asked", "queries_unique", "queries_settled", "query_tokens"),
            ),
        ),
    ),
    Section("Report card", (Panel("picture", "report", ("report",)),)),
    Section("Settings", (Panel("settings", "what differs between runs"),)),
)


def outline(sections: Iterable[Section] = SECTIONS) -> str:
    """The dashboard as text."""
    lines = []
    for section in sections:
        lines.append(section.name)
        for panel in section.panels:
            keys = ", ".join([*panel.keys, *filter(None, [panel.pattern])])
            lines.append(f"    {panel.kind:<9} {panel.title:<28} {keys}".rstrip())
    return "\n".join(lines)


def workspace(entity: str, project: str, name: str = "tinybert_dist") -> Any:
    """A wandb_workspaces Workspace: runs grouped by pipeline and stage, charts over the optimizer step.

    Raises UserError where the package is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            "the dashboard needs the package wandb-workspaces: pip install 'tinybert_dist[dashboard]'"
        ) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=section.name, is_open=section.is_open, panels=list(map(_panel, section.panels)))
            for section in SECTIONS
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), ws.Metric("JobType")],
            pinned_columns=["summary:score", "summary:best/step", "summary:step"],
        ),
    )


def spec(dashboard: Any) -> dict[str, Any]:
    """What publishing sends, as plain values."""
    return dashboard._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.keys[0])
    if panel.kind == "picture":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    if panel.kind == "settings":
        return wr.RunComparer(diff_only=True)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys))
    return wr.LinePlot(
        title=panel.title,
        x=STEP_KEY,
        y=list(panel.keys),
        metric_regex=panel.pattern or None,
        log_y=panel.log_y or None,
    )
