"""One form of "mean ± error", on pages and in plain ASCII, and the verdict on a difference."""

import pytest

from delift_pipeline.core.formatting import number, option_text, verdict, verdict_style, with_error


def test_a_value_stands_with_its_error_and_alone_without() -> None:
    assert with_error(1234.5, 0.25) == "1,234.500 ± 0.250"
    assert with_error(-0.5, 0.204, 2, sign=True) == "−0.50 ± 0.20"
    assert with_error(0.5, None, sign=True) == "+0.500"
    assert with_error(None, 0.1) == "–"


def test_plain_ascii_has_no_separators_and_an_ascii_minus() -> None:
    assert with_error(-1234.5, 0.25, 4, sign=True, ascii_only=True) == "-1234.5000 ± 0.2500"
    assert with_error(None, None, ascii_only=True) == "-"
    assert number(2.0, 1, ascii_only=True) == "2.0"


@pytest.mark.parametrize(
    ("mean", "error", "improvement", "sentence", "style"),
    [
        (-0.5, 0.204, 0.5, "0.500 ± 0.204 better", "good"),
        (0.5, 0.2, -0.5, "0.500 ± 0.200 worse", "bad"),
        (0.25, 0.25, 0.25, "no clear difference (+0.250 ± 0.250)", "soft"),
        (-0.4, 0.2, 0.4, "no clear difference (−0.400 ± 0.200)", "soft"),
        (0.0, 0.0, 0.0, "no clear difference (+0.000 ± 0.000)", "soft"),
    ],
)
def test_a_difference_is_clear_beyond_two_standard_errors(
    mean: float, error: float, improvement: float, sentence: str, style: str
) -> None:
    assert verdict(mean, error, improvement) == sentence
    assert verdict_style(error, improvement) == style


def test_options_are_shown_as_people_write_them() -> None:
    assert option_text(None) == "–"
    assert option_text([True, 0.3, "x"]) == "yes, 0.3, x"
