"""The contenders of the quality experiments: selectors with options, by their names in tables."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import SELECTORS, needs_of
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs

INITIAL, RANDOM, FULL, TFIDF = "initial", "random", "full", "delift_se-tfidf"
RANDOM_DRAWS = 3


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: Name in the table.
        selector: Name of the selector in the registry.
        options: The selector's options.
    """

    name: str
    selector: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        """How many subsets are drawn and averaged; only random choice varies by seed."""
        return RANDOM_DRAWS if self.selector == RANDOM else 1

    def needs(self, stage: Stage) -> Needs:
        """Return which scores the contender reads at a stage."""
        return needs_of(self.selector, stage, self.options)

    def ranking(self, inputs: SelectionInputs, share: float, seed: int) -> tuple[str, ...]:
        """Return the chosen record_ids in rank order; `full` ignores the share."""
        budget = "full" if self.selector == FULL else share
        return select(inputs, self.selector, budget, seed, self.options).ranking


VARIANTS: dict[str, Contender] = {
    # Keeps the diagonal, as the paper's code does.
    "delift-published": Contender("delift-published", "delift", {"diagonal": "keep"}),
    TFIDF: Contender(TFIDF, "delift_se", {"embedder": "tfidf"}),
}
"""Variants of the registry's selectors, by name."""


def known_names() -> tuple[str, ...]:
    """Return all names in tables: `initial` (no training), the selectors and the variants."""
    return tuple(dict.fromkeys((INITIAL, RANDOM, *SELECTORS, *VARIANTS)))


def contenders(names: Iterable[str], *, with_random: bool = True) -> tuple[Contender, ...]:
    """Return the contenders of these names, each once; random choice comes first.

    Raises:
        InputError: a name is unknown; the fault lists the known selectors and variants.
    """
    requested, known = dict.fromkeys((*((RANDOM,) if with_random else ()), *names)), known_names()
    for name in requested:
        if name not in known:
            reason = f"{name!r} is not a selector. Choose from: {', '.join(known)}"
            raise InputError(Fault(reason, field="--only"))
    return tuple(VARIANTS.get(name, Contender(name, name)) for name in requested)
