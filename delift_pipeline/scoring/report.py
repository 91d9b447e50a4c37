"""What a scoring run did; free of torch."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ScoreReport:
    """What a scoring run did.

    Attributes:
        pairs_scored: Pairs scored now.
        pairs_reused: Wanted pairs that were there already, or that another writer scored meanwhile.
        pairs_left_out: Wanted pairs that involve an unscorable record.
        shards_found: Shards in the store at the start.
        shards_written: Shards written now.
        seconds: Wall time.
        halved: Batches halved for memory.
        engine: The engine and its settings.
        cuts: Kind of cut -> records it was made in.
        unscorable: record_id -> why it is in no pair.
    """

    pairs_scored: int
    pairs_reused: int
    pairs_left_out: int
    shards_found: int
    shards_written: int
    seconds: float
    halved: int
    engine: dict[str, Any]
    cuts: dict[str, int] = field(default_factory=dict)
    unscorable: dict[str, str] = field(default_factory=dict)

    @property
    def pairs_per_second(self) -> float:
        """Pairs scored in a second of this run."""
        return self.pairs_scored / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return asdict(self)
