"""The dashboard against what real runs wrote."""

import json
import re
import sys

import pytest
import wandb_files
import wandb_workspaces.reports.v2 as wr

from tinybert_dist import dashboard
from tinybert_dist.config import UserError
from tinybert_dist.dashboard import SECTIONS
from tinybert_dist.stages import dashboard as stage

# not in every run of the tests: MFU needs a known GPU, masked words pretraining
ELSEWHERE = {"throughput/mfu_pct", "loss/masked_lm"}
AXIS = {"step", "best/step"}  # of all charts; in the table of runs


@pytest.fixture(scope="module")
def keys(chain_files):
    """Every key the runs of a pipeline wrote: history, and summaries of our own."""
    found = set()
    for path in chain_files.values():
        for row in [*wandb_files.history(path), wandb_files.summary(path)]:
            # tables and pictures are written field by field
            found |= {re.sub(r"^(predictions|augmentations|report)/.*", r"\1", key) for key in row}
    return {key for key in found if not key.startswith("_")}


def panels():
    return [panel for section in SECTIONS for panel in section.panels]


def test_every_panel_shows_something_a_run_writes(keys):
    for panel in panels():
        if panel.kind == "settings":
            continue
        assert panel.keys or panel.pattern
        for key in panel.keys:
            assert key in keys | ELSEWHERE, (panel.title, key)
        if panel.pattern:
            assert any(re.search(panel.pattern, key) for key in keys), panel


def test_everything_a_run_writes_has_a_panel(keys):
    shown = {key for key in keys if any(panel.shows(key) for panel in panels())}
    # the best step's other metrics stand in the curves; their score has a panel
    assert {key for key in keys - shown - AXIS if not key.startswith("best/")} == set()
    assert len(keys) > 30


def test_the_specification_is_what_wandb_reads_back(tmp_path, capsys):
    stage.main(["--project", "p", "--entity", "team", "--json", str(tmp_path / "d.json")])
    spec = json.loads((tmp_path / "d.json").read_text())
    assert (spec["entity"], spec["project"]) == ("team", "p")
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    for section, there in zip(SECTIONS, sections, strict=True):
        assert len(section.panels) == len(there["panels"])
        for panel, config in zip(section.panels, (p["config"] for p in there["panels"]), strict=True):
            if panel.kind == "lines":
                assert config["xAxis"] == "step" and config.get("metrics", []) == list(panel.keys)
                assert config.get("metricRegex", "") == panel.pattern
            if panel.kind == "bars":
                assert config["metrics"] == list(panel.keys)
            if panel.kind == "table":
                assert f'"{panel.keys[0]}"' in json.dumps(config)
    (runs,) = spec["spec"]["section"]["runSets"]
    assert [level["name"] for level in runs["grouping"]] == ["group", "jobType"]
    view = dashboard.workspace("team", "p")
    again = type(view)._from_model(view._to_model())
    kinds = [type(panel) for section in again.sections for panel in section.panels]
    assert kinds.count(wr.WeavePanelSummaryTable) == 2 and wr.MediaBrowser in kinds


def test_only_lines_take_patterns():
    """wandb's bars have none: such a panel would be empty."""
    assert [panel for panel in panels() if panel.pattern and panel.kind != "lines"] == []


def test_without_a_connection_or_the_package(capsys, monkeypatch):
    stage.main([])
    assert dashboard.outline() in capsys.readouterr().out
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(SystemExit) as stop:
        stage.main(["--publish"])
    assert stop.value.code == 2 and "give --entity" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'tinybert_dist\[dashboard\]'"):
        dashboard.workspace("team", "p")
