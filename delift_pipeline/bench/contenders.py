"""What the quality experiments compare: selectors with options, by the name in the table."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import SELECTORS, needs_of
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs

INITIAL, RANDOM, FULL = "initial", "random", "full"
RANDOM_DRAWS = 3


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: In the table.
        selector: In the registry; `initial` takes no record.
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
        if self.selector == INITIAL:
            return Needs()
        return needs_of(self.selector, stage, self.options)

    def budget(self, share: float) -> float | str:
        """The budget it is given: `full` takes everything, whatever is asked."""
        return "full" if self.selector == FULL else share

    def ranking(self, inputs: SelectionInputs, share: float, seed: int) -> tuple[str, ...]:
        """The record_ids it chooses; none for `initial`."""
        if self.selector == INITIAL:
            return ()
        return select(inputs, self.selector, self.budget(share), seed, self.options).ranking

    def renamed(self, name: str) -> "Contender":
        """The same under another name."""
        return Contender(name, self.selector, self.options)


VARIANTS: dict[str, Contender] = {
    # The diagonal kept, as the paper's code does.
    "delift-published": Contender("delift-published", "delift", {"diagonal": "keep"}),
    "delift_se-tfidf": Contender("delift_se-tfidf", "delift_se", {"embedder": "tfidf"}),
}
"""Named variants beside the registry's selectors."""


def known_names() -> tuple[str, ...]:
    """Every name a table may hold: no tuning, the registry's selectors, and the variants."""
    return tuple(dict.fromkeys((INITIAL, RANDOM, *SELECTORS, *VARIANTS)))


def contender(name: str) -> Contender:
    """The contender of that name.

    Raises:
        Refused: it is no selector and no variant; the fault names those there are.
    """
    if name not in known_names():
        known = ", ".join(known_names())
        raise Refused(Fault(f"no selector is called {name!r}; there are {known}", field="--only"))
    return VARIANTS.get(name, Contender(name, name))


def contenders(names: Iterable[str]) -> tuple[Contender, ...]:
    """The contenders of these names, random choice first, each once.

    Raises:
        Refused: one of them is unknown.
    """
    return tuple(contender(name) for name in dict.fromkeys((RANDOM, *names)))
