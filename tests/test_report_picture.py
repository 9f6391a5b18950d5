"""The picture: all runs on it, nothing over anything else, names in any script."""

import math
import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_folders import config_for, write_models

from tinybert_dist.report import curves, figures, fonts
from tinybert_dist.stages import report

CHINESE = "\u60c5\u611f\u5206\u6790"  # four characters matplotlib's own font lacks


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return report.run(config_for(write_models(tmp_path_factory.mktemp("card"))))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    found = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (found.append(self), save(self, *args, **kw))
    )
    return found


def curve(num_rows=6, **more):
    return [{"step": 10 * s, "loss/total": 1 + 1 / (1 + s), **more} for s in range(num_rows)]


def panels_of(figure):
    return [axes for part in figure.subfigs for axes in part.axes if axes.get_visible()]


def texts_of(figure):
    """(words, bounding box) of everything that is written on a figure."""
    figure.canvas.draw()  # labels still stand where the resolution of the file put them
    found = [text for part in figure.subfigs for text in part.texts]
    for axes in panels_of(figure):
        found += [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in found
        if text.get_visible() and text.get_text()
    ]
    return [(words, box) for words, box in boxes if box.width > 0]


def overlaps(boxes):
    """Pairs of texts that cover more than a sliver of one another."""
    for i, (words, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            if width > 2 and height > 2:
                yield words, other


def outside(figure, boxes):
    width, height = figure.canvas.get_width_height()
    return [w for w, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]


def with_variants(card):
    exported = {
        k: card["student"][k] for k in ("score", "size_mb", "speed", "latency_ms", "throughput_per_s")
    }
    student = card["student"] | {"seeds": 3, "scores": [0.7, 0.76, 0.8], "score_std": 0.0503}
    return card | {"student": student, "retention_std": 0.063, "onnx": exported, "int8": {"size_mb": 0.3}}


@pytest.mark.parametrize("num_runs", [0, 1, 5, 9])
def test_no_text_lies_over_another_and_none_is_cut(card, tmp_path, drawn, num_runs):
    runs = {
        f"task distillation, step {i}": [curve(**{"eval/dev/accuracy": 0.5 + i / 20})]
        for i in range(num_runs)
    }
    figures.draw(with_variants(card), runs, tmp_path / "report.png")
    (figure,) = drawn
    boxes = texts_of(figure)
    words = [text for text, _ in boxes]
    assert all(name in words for name in runs), "every run has its panel"
    assert "student (3 seeds)" in words and "student, int8" in words and "not scored" in words
    assert list(overlaps(boxes)) == [] and outside(figure, boxes) == []
    for axes in panels_of(figure):
        right = axes.get_window_extent().x1
        assert [t.get_text() for t in axes.texts if t.get_window_extent().x1 > right + 2] == []


def test_long_names_are_shortened_and_a_dollar_is_no_formula(card, tmp_path, drawn):
    long = card["teacher"] | {
        "task": "a_task_$\\nonsense{$_" + "that_goes_on_" * 20,
        "metric": "pearson and spearman of it " * 3,
    }
    hardware = card["hardware"] | {"device": "A Processor of 96 Cores " * 9}
    runs = {f"run {i} of $\\alpha$ " + "and so on " * 12: [curve()] for i in range(4)}
    figures.draw(card | {"teacher": long, "hardware": hardware}, runs, tmp_path / "report.png")
    boxes = texts_of(drawn[0])
    assert any("$\\nonsense{$" in words and "\u2026" in words for words, _ in boxes)
    assert list(overlaps(boxes)) == [] and outside(drawn[0], boxes) == []


def test_a_script_without_a_font_is_left_out_and_said_so(card, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(fonts, "_installed", lambda: [])
    teacher = card["teacher"] | {"task": CHINESE}
    runs = {CHINESE: [curve()], f"{CHINESE}2": [curve()], f"teacher, {CHINESE[:2]}": [curve()]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph it has not
        figures.draw(card | {"teacher": teacher}, runs, tmp_path / "report.png")
    words = [text for text, _ in texts_of(drawn[0])]
    assert {"run 1", "run 2", "teacher,"} <= set(words)
    assert any(text.startswith("Task: the task.") for text in words)
    assert any("No font installed here has all characters" in text for text in words)


def test_a_font_that_has_the_characters_is_used(monkeypatch):
    """matplotlib's own DejaVu Sans has no U+27CC; its STIX fonts have other signs that DejaVu lacks."""
    default = fonts._characters(fonts._default_file())
    extra = {file: fonts._characters(file) - default for _, file in fonts._installed()}
    file, signs = max(extra.items(), key=lambda item: len(item[1]))
    assert signs, "no font here has a sign more than the default"
    name = next(name for name, where in fonts._installed() if where == file)
    sign = sorted(signs)[0]
    monkeypatch.setattr(fonts, "_installed", lambda: [(name, file)])
    assert fonts.families_for(f"task {sign}") == ([fonts.DEFAULT, name], set())
    assert fonts.families_for("plain text") == ([fonts.DEFAULT], set())
    assert fonts.families_for(f"{sign}\U000f1234")[1] == {"\U000f1234"}


def test_names_are_cut_by_width():
    assert fonts.shortened("short", 10) == "short"
    assert fonts.shortened("abcdefghijklmnop", 9) == "abcde\u2026nop"
    assert len(fonts.shortened(CHINESE * 10, 20)) <= 11, "wide characters count twice"


def test_loss_axes_start_at_zero_or_are_logarithmic(card, tmp_path, drawn):
    runs = {
        "steady": [curve()],
        "steep": [[{"step": s, "loss/total": 100 * math.exp(-s)} for s in range(1, 9)]],
        "odd": [[{"step": 1, "loss/total": float("nan")}, {"step": 2, "loss/total": -1.0}]],
        "empty": [[{"step": 1, "throughput/tokens": 3}]],
    }
    figures.draw(card, runs, tmp_path / "report.png")
    panels = {axes.get_title(loc="left"): axes for axes in panels_of(drawn[0])}
    assert panels["steady"].get_ylim()[0] == 0 and panels["steady"].get_yscale() == "linear"
    assert panels["steep"].get_yscale() == "log"
    assert panels["odd"].get_ylim()[0] == -1.0
    assert "empty" not in panels and not curves.has_loss(runs["empty"][0])


def test_every_seed_has_a_line_and_a_mark(card, tmp_path, drawn):
    three = with_variants(card)
    figures.draw(three, {"step 2": [curve(), curve(8), curve(4)]}, tmp_path / "report.png")
    panels = {axes.get_title(loc="left"): axes for axes in panels_of(drawn[0])}
    assert [len(line.get_xdata()) for line in panels["step 2"].lines] == [6, 8, 4]
    (marks,) = panels["accuracy"].collections
    assert sorted(marks.get_offsets()[:, 0].tolist()) == [0.7, 0.76, 0.8]
    assert any(set(line.get_xdata()) == {0.8} for line in panels["accuracy"].lines), "the teacher's line"
    with Image.open(tmp_path / "report.png") as image:
        assert image.width == 14 * 130
