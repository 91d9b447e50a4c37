"""Line plots may mark a place."""

from delift_pipeline.evaluation.svg import line_plot


def test_a_marked_place_is_drawn_and_named() -> None:
    plain = line_plot([3.0, 2.0, 1.0], "records", "gain")
    marked = line_plot([3.0, 2.0, 1.0], "records", "gain", marked=(2, "knee, 2 <records>"))
    assert marked.count("<line") == plain.count("<line") + 1
    assert "knee, 2 &lt;records&gt;" in marked and "knee" not in plain
