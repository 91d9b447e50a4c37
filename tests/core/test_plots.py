"""Plots as PNG and as inline SVG: what they draw, that texts stay texts, and that bytes repeat."""

import re

import numpy as np
import pytest

from delift_pipeline.core.plots import (
    MOST_POINTS,
    Bar,
    Curve,
    draw_bars,
    draw_curves,
    gain_curve_png,
    histogram_png,
    png,
    series,
    svg,
)

SCRIPT = '<script>alert(1)</script> $x$ & "y"'
BARS = [Bar(SCRIPT, 1.0, 0.1, "1.000 ± 0.100", "chosen"), Bar("random", -0.5, None, "−0.500")]


def test_a_marked_place_is_drawn_and_named() -> None:
    shown = series([3.0, 2.0, 1.0])
    plain = svg(draw_curves(shown, "records", "gain"), "gain by records")
    figure = draw_curves(shown, "records", "gain", marked=(2, "knee, 2 <records>"))
    marked = svg(figure, "gain by records")
    assert marked.count("<path") == plain.count("<path") + 1
    assert "knee, 2 &lt;records&gt;" in marked and "knee" not in plain
    assert ">records</text>" in plain and ">gain</text>" in plain


def test_texts_of_an_svg_are_escaped_texts_and_nothing_is_loaded() -> None:
    drawn = svg(draw_bars({"": BARS}), SCRIPT)
    assert "<script" not in drawn
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$ &amp;" in drawn
    assert ">1.000 ± 0.100</text>" in drawn
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://|<style|\bid=", drawn)
    assert drawn.startswith("<svg ") and drawn.endswith("</svg>")
    assert drawn.count("<svg") == 1


def test_colours_of_an_svg_are_the_pages_where_it_has_any() -> None:
    drawn = svg(draw_bars({"": BARS}), "bars")
    assert "var(--chosen, #0b6e66)" in drawn and "var(--plain, #9db4bd)" in drawn


def test_a_long_series_is_averaged_and_a_short_one_is_kept() -> None:
    (short,) = series([3.0, 2.0], first=0)
    assert (list(short.x), list(short.y)) == ([0, 1], [3.0, 2.0])
    (long,) = series(np.arange(10 * MOST_POINTS).tolist())
    assert len(long.x) == MOST_POINTS
    assert long.y[0] == pytest.approx(4.5) and long.x[0] == 6


def test_equal_figures_give_equal_pngs() -> None:
    def draw() -> list[bytes]:
        points = [Curve("a", [1, 10], [1.0, 2.0], [0.1, None]), Curve("b", [5], [1.0], style="o")]
        return [
            png(draw_bars({"answer loss": BARS, "exact match": BARS[:1]})),
            png(draw_bars({})),
            png(draw_curves(points, "x", "y", log_x=True)),
            gain_curve_png(np.array([3.0, 1.0]), "delift", "fl", 1, 2.0),
            gain_curve_png(None, "random", ""),
            histogram_png([1.0, float("nan")], "answers", "nats"),
            histogram_png([], "answers", "nats"),
        ]

    pictures = draw()
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == len(pictures)
    assert draw() == pictures
