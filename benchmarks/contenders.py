"""What the quality experiments compare: selectors with options, by the name in the table."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from delift_pipeline.core.errors import Fault, Refused
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
        name: In the table.
        selector: In the registry.
        options: The selector's options.
    """

    name: str
    selector: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        """How many subsets are drawn and averaged; random choice alone varies by seed."""
        return RANDOM_DRAWS if self.selector == RANDOM else 1

    def needs(self, stage: Stage) -> Needs:
        """Which scores it reads at a stage."""
        return needs_of(self.selector, stage, self.options)

    def ranking(self, inputs: SelectionInputs, share: float, seed: int) -> tuple[str, ...]:
        """The record_ids it chooses; `full` takes everything, whatever is asked."""
        budget = "full" if self.selector == FULL else share
        return select(inputs, self.selector, budget, seed, self.options).ranking


VARIANTS: dict[str, Contender] = {
    # The diagonal kept, as the paper's code does.
    "delift-published": Contender("delift-published", "delift", {"diagonal": "keep"}),
    TFIDF: Contender(TFIDF, "delift_se", {"embedder": "tfidf"}),
}
"""Named variants beside the registry's selectors."""


def known_names() -> tuple[str, ...]:
    """Every name a table may hold: no tuning, the registry's selectors, and the variants."""
    return tuple(dict.fromkeys((INITIAL, RANDOM, *SELECTORS, *VARIANTS)))


def contenders(names: Iterable[str], *, beside_random: bool = True) -> tuple[Contender, ...]:
    """The contenders of these names, each once; random choice comes first.

    Raises:
        Refused: a name is unknown; the fault lists the known selectors and variants.
    """
    requested, known = dict.fromkeys((*((RANDOM,) if beside_random else ()), *names)), known_names()
    for name in requested:
        if name not in known:
            reason = f"no selector is called {name!r}; there are {', '.join(known)}"
            raise Refused(Fault(reason, field="--only"))
    return tuple(VARIANTS.get(name, Contender(name, name)) for name in requested)
