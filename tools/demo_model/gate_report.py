"""What the in-context gate measures, what it asks for, and its report."""

from dataclasses import asdict, dataclass
from typing import Any

LARGEST_GAIN: dict[str, float] = {"lookup": -1.0, "translate": -1.0, "who": -1.0, "format": -0.4}
"""Family -> what one demonstration must change the loss by, or more, in nats an answer token."""

LARGEST_DISTRACTION = 0.15
"""What a demonstration of another family may change the loss by, in nats an answer token."""


@dataclass(frozen=True)
class FamilyResult:
    """Mean loss per answer token (with `</s>`), in nats, and share of answers exact by arg max."""

    family: str
    alone: float
    shown: float
    distracted: float
    exact_alone: float
    exact_shown: float

    @property
    def gain(self) -> float:
        """What a demonstration of the same rule changes; negative is better."""
        return self.shown - self.alone

    @property
    def distraction(self) -> float:
        """What a record of another family changes."""
        return self.distracted - self.alone

    @property
    def passed(self) -> bool:
        """Whether gain and distraction are within the gate's thresholds."""
        helped = self.gain < LARGEST_GAIN.get(self.family, float("inf"))
        return helped and abs(self.distraction) < LARGEST_DISTRACTION


@dataclass(frozen=True)
class GateReport:
    """The gate's measurements, one result a family."""

    seed: int
    trials: int
    families: tuple[FamilyResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every family passed."""
        return all(result.passed for result in self.families)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [
            {**asdict(r), "gain": r.gain, "distraction": r.distraction, "passed": r.passed}
            for r in self.families
        ]
        return {
            "seed": self.seed,
            "trials": self.trials,
            "passed": self.passed,
            "families": results,
        }

    def table(self) -> str:
        """The measurements as lines of text."""
        head = f"{'family':<10}{'alone':>8}{'shown':>8}{'gain':>8}{'needed':>8}{'other':>8}"
        lines = [head + f"{'exact alone':>13}{'shown':>7}  verdict"]
        for r in self.families:
            needed = LARGEST_GAIN.get(r.family)
            lines.append(
                f"{r.family:<10}{r.alone:8.3f}{r.shown:8.3f}{r.gain:+8.3f}"
                f"{'-' if needed is None else f'{needed:+.1f}':>8}{r.distraction:+8.3f}"
                f"{r.exact_alone:13.2f}{r.exact_shown:7.2f}  {'pass' if r.passed else 'FAIL'}"
            )
        return "\n".join([*lines, f"gate {'passed' if self.passed else 'FAILED'}"])
