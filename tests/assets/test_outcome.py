"""What a step shows of its tables."""

import polars as pl

from assets.outcome import PREVIEW_CHARACTERS, PREVIEW_ROWS, preview


def test_preview_keeps_the_first_rows_and_shortens_texts() -> None:
    frame = pl.DataFrame({"text": ["x" * 1000] * 50, "number": range(50), "other": range(50)})
    short = preview(frame, ("number", "text"))
    assert short.columns == ["number", "text"]
    assert short["number"].to_list() == list(range(PREVIEW_ROWS))
    assert set(short["text"].str.len_chars()) == {PREVIEW_CHARACTERS}


def test_preview_of_nothing_is_empty() -> None:
    assert preview(pl.DataFrame({"text": []}, schema={"text": pl.String}), ("text",)).is_empty()
