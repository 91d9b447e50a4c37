"""What `delift select` is asked for, and what it answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from delift_pipeline.records.read import Ids, Inputs
from delift_pipeline.selection.rule_options import RuleOptions


@dataclass(frozen=True)
class Request:
    """What `delift select` was asked for.

    Attributes:
        file: The pool: a file, a folder of files, or several.
        target: Examples of the task to choose for, or None.
        existing: Records the model is trained on already, or None.
        stage: The stage; None takes the one that fits what is given.
        selector: The selector's name.
        options: Its options by name.
        budget: A share, a count, `full`, tokens or `auto`, as typed.
        seed: Seeds whatever is drawn.
        mapping: Column by field.
        skip_bad: Leave faulty rows out and list their faults beside `out`.
        out: Where the chosen records go.
        why: Where the reasons go, or None.
        balance: Columns of the file to compare pool and subset by, beside task and source.
        rules: Records pinned in or out (ids or files), quotas and caps.
        ids: `ignore` drops the files' own ids.
    """

    file: Inputs
    target: Path | None
    existing: Path | None
    stage: str | None
    selector: str
    options: Mapping[str, Any]
    budget: str
    seed: int
    mapping: Mapping[str, str] | None
    skip_bad: bool
    out: Path
    why: Path | None
    balance: tuple[str, ...] = ()
    rules: RuleOptions = field(default_factory=RuleOptions)
    ids: Ids = "keep"


@dataclass(frozen=True)
class Report:
    """What was chosen, at what cost.

    Attributes:
        folded: Records of the pool's file that repeat an earlier one.
        left_out: Faulty rows left out of all files.
        faults: How many faults those have, by reason.
        faults_file: The file that lists the faults, or None.
    """

    pool: int
    selected: int
    stage: str
    selector: str
    objective: float | None
    objective_random: float | None
    budget: str
    tokens: int | None
    knee: int | None
    pairs_scored: int
    pairs_reused: int
    folded: int
    left_out: int
    faults: dict[str, int]
    faults_file: str | None
    unscorable: int
    cuts: dict[str, int]
    seconds: float
    fingerprint: str
    out: str
    why: str | None
    notes: tuple[str, ...] = field(default=())
    diagnostics: dict[str, float | None] = field(default_factory=dict)
    balance: list[dict[str, Any]] = field(default_factory=list)
    said: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON document; what is said of it follows from its numbers."""
        return {name: value for name, value in asdict(self).items() if name != "said"}

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.selected:,} of {self.pool:,} records ({self.stage}): {self.out}"]
        if self.objective is not None:
            lines.append(
                f"objective {self.objective:.4f}, random subsets of this size "
                f"{self.objective_random:.4f}"
            )
        if self.tokens is not None:
            lines.append(f"{self.tokens:,} tokens, budget {self.budget}")
        if self.knee is not None:
            lines.append(f"the gain curve bends (its knee) after {self.knee:,} records")
        lines.append(
            f"{self.pairs_scored:,} pairs scored, {self.pairs_reused:,} found, {self.seconds:.1f} s"
        )
        if self.why:
            lines.append(f"reasons: {self.why}")
        return "\n".join(lines)
