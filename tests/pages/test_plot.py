"""Plots are SVG that needs nothing else: axes of their own, marks where they belong, right in the dark."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pages.plot import Axis, Line, Mark, Plot, draw, round_up, standalone

LINES = [Line("error", [(0, 1.0), (100, 0.5)], 0), Line("loss", [(0, 4.0), (100, 2.0), (50, float("inf"))], 1, True)]
LEFT, RIGHT = Axis("errors", 1.0, lambda share: f"{share:.0%}"), Axis("nats", 4.0, str)
MARKS = [Mark(25, "lr 0.1"), Mark(100, "best 50%", 0.5)]
PLOT = Plot("what it is", LINES, LEFT, 100, RIGHT, MARKS)
SVG = "{http://www.w3.org/2000/svg}"


def parts(plot, tag):
    return [*ElementTree.fromstring(standalone(draw(plot))).iter(SVG + tag)]


def test_each_axis_has_a_scale_of_its_own():
    error, loss = ([*map(float, line.get("points").replace(",", " ").split())] for line in parts(PLOT, "polyline"))
    assert error == loss  # 1.0 of 1 and 4.0 of 4 are the top, half of each the middle; what is infinite is left out
    texts = [text.text for text in parts(PLOT, "text")]
    assert {"100%", "4.0", "errors", "nats", "step"} <= {*texts} and "nats" not in draw(PLOT._replace(right=None))


def test_marks_stand_where_they_belong():
    error = [*map(float, parts(PLOT, "polyline")[0].get("points").replace(",", " ").split())]
    (drop,) = (line for line in parts(PLOT, "line") if line.get("class") == "mark")
    assert float(drop.get("x1")) == pytest.approx(error[0] + (error[2] - error[0]) / 4, abs=0.1)
    (dot,) = parts(PLOT, "circle")
    assert [float(dot.get("cx")), float(dot.get("cy"))] == error[2:]
    best = next(text for text in parts(PLOT, "text") if text.text == "best 50%")
    assert best.get("text-anchor") == "end"  # it would leave the sheet otherwise


def test_a_name_is_text_whatever_it_holds_and_long_ones_take_rows():
    names = ["<script>&'\"", *("a name of some length " * 2 + str(number) for number in range(4))]
    plot = PLOT._replace(lines=[Line(name, [(1, 0.5)], number) for number, name in enumerate(names)], what=names[0])
    drawn = draw(plot)
    assert "<script" not in drawn and names[0] in [text.text for text in parts(plot, "text")]
    rows = {text.get("y") for text in parts(plot, "text") if text.text in names}
    assert len(rows) > 2
    xs = [float(text.get("x")) for text in parts(plot, "text")]
    assert min(xs) >= 0 and max(xs) <= plot.width


def test_a_line_without_a_name_is_drawn_and_not_in_the_legend():
    unnamed = PLOT._replace(lines=[*LINES, Line("", [(0, 0.5), (100, 0.4)], 0)])
    assert len(parts(unnamed, "polyline")) == len(LINES) + 1
    assert len(parts(unnamed, "line")) == len(parts(PLOT, "line")) and len(parts(unnamed, "text")) == len(
        parts(PLOT, "text")
    )


def test_a_file_of_its_own_is_right_on_light_and_dark_grounds():
    file = standalone(draw(PLOT))
    assert "@media (prefers-color-scheme: dark)" in file and file.startswith("<svg xmlns=")
    used, known = {*re.findall(r"var\((--\w+)\)", file)}, {*re.findall(r"(--\w+):", file)}
    assert used <= known and not re.search(r"href|url\(|@import", file)


def test_an_axis_ends_at_a_number_that_reads_well():
    assert [round_up(value) for value in (0, 0.07, 0.3, 1, 6.9, 4368)] == [1, 0.08, 0.4, 1, 8, 6000]
