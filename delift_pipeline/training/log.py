"""What one training run did, as plain data. Holds no torch."""

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
        epochs: Passes over the records those steps make.
        seconds: Wall time of the steps, model loading left out.
        tokens: Tokens fed in all, prompts included, padding left out.
        answer_tokens: Answer tokens among them, which alone carry loss.
        parameters: Parameters of the model, adapters included.
        records_left_out: Records whose answer does not fit the window: `record_id` -> why.
        cuts: Texts cut to fit the window, by kind.
        resumed_at: The step a checkpoint was resumed at, or None.
        started_from: Name of the adapter or model folder training went on from, or None.
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
        """Mean loss over the first tenth of the steps; NaN where none was done."""
        tenth = self.losses[: max(1, len(self.losses) // 10)]
        return sum(tenth) / len(tenth) if tenth else float("nan")

    @property
    def last_loss(self) -> float:
        """Mean loss over the last tenth of the steps; NaN where none was done."""
        tenth = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tenth) / len(tenth) if tenth else float("nan")

    @property
    def loss_fell(self) -> bool:
        """Whether the last tenth's mean loss is below the first tenth's, or nothing was trained."""
        return not self.losses or self.last_loss < self.first_loss

    @property
    def means(self) -> dict[str, float | None]:
        """`first_loss` and `last_loss`, None where no step was done."""
        means = {"first_loss": self.first_loss, "last_loss": self.last_loss}
        return {name: mean if self.losses else None for name, mean in means.items()}

    def summary(self) -> dict[str, Any]:
        """Everything but the curves, with the two means and whether the loss fell."""
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
        raise DeliftError(f"{path}: no training log can be read ({error})") from error


def weights_hash(folder: Path) -> str:
    """Digest of a trained folder's weights and configuration: its content hash.

    The log is left out, since it holds times; the tokenizer is covered by the fingerprint.

    Raises:
        DeliftError: the folder holds no weights.
    """
    files = [path for pattern in WEIGHT_FILES for path in folder.glob(pattern)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise DeliftError(f"{folder} holds no safetensors weights")
    return digest_files(folder, files)
