"""What a reader of an experiment's table has to know, in whole sentences."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delift_pipeline.bench.experiments import Asked

SELECTIT = (
    "selectit: the demo model knows the digits 1 to 5, but 42 of the 112 tokens of its rating "
    "prompts and question are unknown words to it. Its rating is the digit it would write next, no "
    "judgement of quality: the row shows that the selector runs, not what it is worth."
)
SIMILARITY = (
    "embedding_similarity: cosine of all-MiniLM-L6-v2. Of the demo world's made-up words it says "
    "how much spelling two answers share, not whether they mean the same."
)
UNJUDGED = (
    "No judge was asked, so no score of one is shown: name one by --judge, with --endpoint or as a "
    "local model's folder."
)
JUDGED = (
    "judge: mean score from 1 to 5 by {}; judge_scored: share of its replies that hold a score, "
    "the others are in no mean."
)
WITHOUT_QLORA = (
    "qlora is left out: bitsandbytes is not installed here (pip install 'delift-pipeline[qlora]')."
)


def can_quantise() -> bool:
    """Whether bitsandbytes is installed, without importing it."""
    return find_spec("bitsandbytes") is not None


def nothing_noted(_: "Asked") -> tuple[str, ...]:
    """No note."""
    return ()


def noted_selectors(asked: "Asked") -> tuple[str, ...]:
    """What ratings mean on the demo world."""
    return (SELECTIT,) if not asked.names or "selectit" in asked.names else ()


def noted_stages(asked: "Asked") -> tuple[str, ...]:
    """What similarity and ratings mean on the demo world, and who judged."""
    judged = JUDGED.format(asked.judge.options.model) if asked.judge else UNJUDGED
    rated = "selectit" in asked.names or not (asked.names or asked.quick)
    return (SIMILARITY, judged, *((SELECTIT,) if rated else ()))


def noted_tuning(_: "Asked") -> tuple[str, ...]:
    """Which methods are left out."""
    return () if can_quantise() else (WITHOUT_QLORA,)
