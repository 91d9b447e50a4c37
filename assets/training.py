"""Training: fine-tune the base model on a subset."""

from pathlib import Path

import polars as pl

from assets.common import MODEL_RESOURCES, Step, asset_of
from assets.execution import GPU_POOL
from assets.outcome import PREVIEW_ROWS, Check, Outcome, load_plot
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.plots import loss_curve_png
from delift_pipeline.orchestration.partitions import version_and_arm
from delift_pipeline.stages.adapter import AdapterResult, make_adapter

ALREADY_CHECKED = Check(True, "the stored weights are those that were checked after training")


@asset_of(
    make_adapter,
    version_and_arm,
    deps=["raw_dataset", "subset"],
    group_name="training",
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=GPU_POOL,
    required_resource_keys=MODEL_RESOURCES | {"tracking"},
)
def adapter(step: Step) -> Outcome:
    """The adapter (or whole model) that fine-tuning on an arm's subset produced."""
    home, version, arm, model = step.home, step.version, step.arm, step.model
    tracker = step.resources.tracking.tracker(home)
    return adapter_outcome(
        make_adapter(home, version, arm, model, tracker, step.progress, step.run_id)
    )


def adapter_outcome(result: AdapterResult) -> Outcome:
    """Convert an adapter to what Dagster shows."""
    log, manifest = result.log, result.manifest
    left_out = list(log.records_left_out.items())[:PREVIEW_ROWS]
    loss = f"loss per answer token {log.first_loss:.3f} -> {log.last_loss:.3f} nats"
    return Outcome.of(
        result,
        facts={
            **manifest.counts,
            "method": log.method,
            "template": result.template,
            **{name: mean for name, mean in log.means.items() if mean is not None},
            "training_seconds": log.seconds,
            "started_from": manifest.details["started_from"] or "the base model",
        },
        plots={"loss": load_plot(result.folder / "loss.png", lambda: loss_curve_png(log.losses))},
        tables={
            "records left out": pl.DataFrame(left_out, schema=["record_id", "why"], orient="row")
        },
        checks={
            "loads": ALREADY_CHECKED if result.reused else _check_weights(result.folder),
            "loss_fell": Check(
                log.loss_fell, loss if log.losses else "nothing was trained: this is the base model"
            ),
        },
        links=result.links,
    )


def _check_weights(folder: Path) -> Check:
    """Check whether every weight can be read and is finite."""
    import torch
    from safetensors import SafetensorError, safe_open

    weights = 0
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - `file` is not a mapping
                    weights += 1
                    if not torch.isfinite(file.get_tensor(name)).all():
                        return Check(False, f"{name} in {path.name} is not finite")
    except (OSError, SafetensorError, DeliftError) as error:
        return Check(False, f"the weights cannot be read: {error}")
    return Check(weights > 0, f"{weights} weight tensors, all finite", {"tensors": weights})
