"""What a judge is asked to look at: the paper's eight dimensions and five scores, in our words.

The paper asks for one score over all eight dimensions (`single`); `dimensions` asks for each by
itself. `VERSION` is part of what identifies a judgement: another wording is another measurement.
"""

from typing import Literal

VERSION = 1
Mode = Literal["single", "dimensions"]
LOWEST, HIGHEST = 1, 5
OVERALL = "overall"

DIMENSIONS: dict[str, str] = {
    "instruction_following": "Does the answer do what the instruction asks, all of it and nothing "
    "else?",
    "accuracy": "Is everything it states right, by the reference answer and by what is known?",
    "relevance": "Does every part of it bear on the question?",
    "completeness": "Does it cover what the reference answer covers?",
    "depth": "Does it explain and reason as far as the question calls for?",
    "clarity": "Is it well ordered, plainly worded and easy to follow?",
    "creativity": "Where the task leaves room, does it bring a thought of its own?",
    "helpfulness": "Would the person who asked be served by it?",
}

_ALL_SCORES = {
    1: "It fails in nearly all of these respects.",
    2: "It has serious faults in several of them.",
    3: "It is middling: some are met, others are not.",
    4: "It is good: nearly all are met well, with small faults.",
    5: "It is excellent in all or nearly all of them.",
}
_ONE_SCORES = {
    1: "Not at all.",
    2: "Hardly; there are serious faults.",
    3: "In part.",
    4: "Yes, with small faults.",
    5: "Yes, fully.",
}


def dimensions_of(mode: Mode) -> tuple[str, ...]:
    """The scores a mode asks for: `overall`, or each dimension."""
    return (OVERALL,) if mode == "single" else tuple(DIMENSIONS)


def criterion(dimension: str) -> str:
    """The text of what is judged: the question or questions, and what each score means."""
    if dimension == OVERALL:
        asked = [f"- {_title(name)}: {question}" for name, question in DIMENSIONS.items()]
        questions, scores = "\n".join(asked), _ALL_SCORES
    else:
        questions, scores = f"- {_title(dimension)}: {DIMENSIONS[dimension]}", _ONE_SCORES
    meanings = "\n".join(f"{score}: {meaning}" for score, meaning in scores.items())
    return f"{questions}\n\nScores:\n{meanings}"


def _title(dimension: str) -> str:
    return dimension.replace("_", " ")
