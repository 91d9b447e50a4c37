"""The log of one training run, as plain data. This module does not import torch."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_files

TRAINING_LOG = "training.json"
WEIGHT_FILES = ("*.safetensors", "adapter_config.json", "config.json")


class TrainingLog(BaseModel):
    """One training run.

    Attributes:
        method: `lora`, `qlora` or `full`.
        losses: Mean negative log-probability of an answer token in each step's batch, nats.
        epochs: How many passes over the records the steps make.
        seconds: Wall time of the steps, without model loading.
        tokens: All tokens that the model read, with prompts and without padding.
        answer_tokens: Answer tokens among them, the only ones with a loss.
        parameters: Parameters of the model, adapters included.
        records_left_out: Records whose answer does not fit the window: `record_id` -> reason.
        cuts: How many texts were cut to fit the window, by kind.
        resumed_at: The step at which a killed run was resumed, or None.
        started_from: Name of the adapter or model folder with which training started, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    losses: list[float]
    learning_rates: list[float]
    steps: int
    epochs: float
    seconds: float
    tokens: int
    answer_tokens: int
    trainable_parameters: int
    parameters: int
    records_used: int
    records_left_out: dict[str, str] = Field(default_factory=dict)
    cuts: dict[str, int] = Field(default_factory=dict)
    seed: int
    resumed_at: int | None = None
    started_from: str | None = None

    @property
    def first_loss(self) -> float:
        """Mean loss over the first tenth of the steps; NaN without steps."""
        tenth = self.losses[: max(1, len(self.losses) // 10)]
        return sum(tenth) / len(tenth) if tenth else float("nan")

    @property
    def last_loss(self) -> float:
        """Mean loss over the last tenth of the steps; NaN without steps."""
        tenth = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tenth) / len(tenth) if tenth else float("nan")

    @property
    def loss_fell(self) -> bool:
        """Whether `last_loss` is below `first_loss`; also true without steps."""
        return not self.losses or self.last_loss < self.first_loss

    @property
    def means(self) -> dict[str, float | None]:
        """`first_loss` and `last_loss` by name; None without steps."""
        means = {"first_loss": self.first_loss, "last_loss": self.last_loss}
        return {name: mean if self.losses else None for name, mean in means.items()}

    def summary(self) -> dict[str, Any]:
        """Return everything but the curves, with the two means and whether the loss fell."""
        facts = self.model_dump(mode="json", exclude={"losses", "learning_rates"})
        return facts | self.means | {"loss_fell": self.loss_fell}


def write_training_log(folder: Path, log: TrainingLog) -> None:
    """Write `training.json` into a folder."""
    write_json(folder / TRAINING_LOG, log.model_dump(mode="json"))


def read_training_log(folder: Path) -> TrainingLog:
    """Read the `training.json` of an adapter's folder.

    Raises:
        DeliftError: it is missing or damaged.
    """
    path = folder / TRAINING_LOG
    try:
        return TrainingLog.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        reason = f"{path} is missing or damaged ({error}). Run the training again"
        raise DeliftError(reason) from error


def weights_hash(folder: Path) -> str:
    """Return the digest of a trained folder's weights and configuration: its content hash.

    The log is left out because it holds times. The fingerprint covers the tokenizer.

    Raises:
        DeliftError: the folder has no weights.
    """
    files = [path for pattern in WEIGHT_FILES for path in folder.glob(pattern)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise DeliftError(f"{folder} has no safetensors file. Run the training again")
    return digest_files(folder, files)
