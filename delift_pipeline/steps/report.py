"""The step behind `eval_report`: an arm on the held-out set, beside base, random and full."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.arms import COMPARISONS, Arm, load_arms
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.base import base_evaluation, stage_heldout
from delift_pipeline.evaluation.forgetting import Forgetting
from delift_pipeline.evaluation.report import ArmReport, metric_bars, write_report
from delift_pipeline.evaluation.result import (
    Evaluation,
    differences,
    read_evaluation,
    restricted,
)
from delift_pipeline.formatting import with_error
from delift_pipeline.lineage.existing import SUBSET_FILE
from delift_pipeline.lineage.tracked import links_of
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.plots import bars, png
from delift_pipeline.progress import Progress
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.names import portable_name
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.run import BALANCE
from delift_pipeline.steps.adapter import subset_manifest
from delift_pipeline.steps.forgetting import forgetting_of, line_of, rest_samples, write_rest
from delift_pipeline.steps.in_context import NAME as IN_CONTEXT
from delift_pipeline.steps.in_context import in_context_of, write_in_context
from delift_pipeline.steps.outcome import PREVIEW_ROWS, Check, Outcome, kept_plot, preview
from delift_pipeline.steps.report_tracking import Evaluated, refresh_card, track_report
from delift_pipeline.steps.suspects import suspects_of
from delift_pipeline.storage.atomic import replacing_folder
from delift_pipeline.storage.hashing import digest_frame, digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.training.log import read_training_log

CODE_VERSION = "1"
PREVIEWED = ("instruction", "input", "reference", "generated", "answer_loss")


@dataclass(frozen=True)
class Measured:
    """An arm's evaluation and those it is read beside.

    Attributes:
        own: The arm's.
        beside: `initial`, `in_context` where it is asked for (the base model behind this arm's
            nearest chosen records), and the stage's `random` and `full` arms (None: not evaluated
            yet).
        forgetting: The models and held-out sets of earlier versions (continual stage only).
    """

    own: Evaluation
    beside: dict[str, Evaluation | None]
    forgetting: Forgetting | None = None


@dataclass(frozen=True)
class Shown:
    """What MLflow adds to what a person sees: addresses by title, and who leads now."""

    links: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float | int | str] = field(default_factory=dict)


def make_report(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    tracker: Tracker | None,
    progress: Progress,
    run_id: str | None = None,
) -> Outcome:
    """Evaluate an arm's adapter on the held-out set, unless the same was done before.

    A continual arm's is evaluated on the held-out sets of all earlier versions as well.

    The page is written anew where one of the evaluations it stands beside has changed.

    Raises:
        Refused: there is no adapter yet.
        DeliftError: no held-out record can be measured.
    """
    dataset = load_version(home, version)
    adapter = _adapter_manifest(home, version, arm.name)
    fingerprint = fingerprint_of(model).digest
    heldout = stage_heldout(dataset.heldout, dataset.target, arm.stage, arm.evaluation)
    base = base_evaluation(
        home, version, model, fingerprint, dataset.heldout, arm.evaluation, progress
    )
    base = restricted(base, heldout["record_id"])
    request = {"evaluation": arm.evaluation.request}
    line = line_of(home, dataset, arm)
    parents = {
        f"adapter:{version}:{arm.name}": adapter.content_hash,
        f"heldout:{version}": digest_frame(heldout),
        **line.parents,
    }
    folder = home.report(version, arm.name)
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    own = read_evaluation(folder) if stored else None
    reused = own is not None
    if own is None:
        own = _evaluate(home, version, heldout, arm, model, progress)
    kept = folder if reused else None
    shown = in_context_of(home, dataset, arm, model, heldout, kept, progress)
    rest = rest_samples(
        line,
        kept,
        lambda records: _evaluate(home, version, records, arm, model, progress),
    )
    matrix = forgetting_of(home, dataset, arm, model, fingerprint, line, own, rest, progress)
    untrained = {"initial": base, **({IN_CONTEXT: shown} if shown else {})}
    compared = {**untrained, **_comparisons(home, version, arm, fingerprint)}
    measured = Measured(own, compared, matrix)
    manifest = Manifest(
        kind="report",
        content_hash=_content_hash(own, rest, shown),
        parents=parents,
        fingerprint=fingerprint,
        counts=own.counts,
        details=_stands_beside(measured),
        request=request,
        code_version=CODE_VERSION,
        run_id=stored.run_id if stored else run_id,
    )
    name = portable_name(model.model)
    measured_arm = Evaluated(home, dataset, arm, name, adapter, manifest, own, measured.beside)
    if stored is None or stored.details != manifest.details or not reused:
        suspects = suspects_of(home, dataset, arm, model, fingerprint, progress)
        report = _report(home, dataset, arm, model, fingerprint, adapter, measured, suspects)
        with replacing_folder(folder) as temporary:
            write_report(temporary, report)
            write_rest(temporary, rest)
            write_in_context(temporary, shown)
            manifest.write(temporary)
        refresh_card(measured_arm)
    return _outcome(home, dataset, arm, manifest, measured, reused, _shown(measured_arm, tracker))


def _content_hash(own: Evaluation, rest: pl.DataFrame | None, shown: Evaluation | None) -> str:
    """Digest of what was measured: here, on earlier held-out sets, and in context."""
    parts = [own.content_hash]
    parts += [digest_frame(rest)] if rest is not None else []
    parts += [shown.content_hash] if shown is not None else []
    return digest_json(parts) if len(parts) > 1 else parts[0]


def _stands_beside(measured: Measured) -> dict[str, Any]:
    """Digests of what the page shows beside the arm: it is written anew where they change."""
    others = measured.beside.items()
    details: dict[str, Any] = {
        "beside": {name: other.content_hash if other else None for name, other in others}
    }
    if measured.forgetting is not None:
        details["forgetting"] = digest_json(measured.forgetting.as_json())
    return details


def _shown(measured: Evaluated, tracker: Tracker | None) -> Shown:
    """What MLflow adds to what a person sees; nothing without it."""
    if tracker is None:
        return Shown()
    leader = track_report(measured, tracker)
    return Shown(links_of(measured.folder, tracker), {"leader": leader} if leader else {})


def _adapter_manifest(home: Home, version: str, arm: str) -> Manifest:
    manifest = read_manifest(home.adapter(version, arm))
    if manifest is None:
        raise Refused(
            Fault(f"{version} has no adapter of {arm} yet: materialise it first", field="arm")
        )
    return manifest


def _evaluate(
    home: Home,
    version: str,
    heldout: pl.DataFrame,
    arm: Arm,
    model: ModelOptions,
    progress: Progress,
) -> Evaluation:
    from delift_pipeline.evaluation.run import evaluate

    return evaluate(model, home.adapter(version, arm.name), heldout, arm.evaluation, progress)


def _comparisons(
    home: Home, version: str, arm: Arm, fingerprint: str
) -> dict[str, Evaluation | None]:
    """The stage's plain random and full arms, where they are evaluated with the same model."""
    found: dict[str, Evaluation | None] = {}
    known = load_arms(home).names
    for selector in COMPARISONS:
        name = f"{arm.stage}.{selector}"
        if name == arm.name or name not in known:
            continue
        manifest = read_manifest(home.report(version, name))
        same = manifest is not None and manifest.fingerprint == fingerprint
        found[selector] = read_evaluation(home.report(version, name)) if same else None
    return found


def _report(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    model: ModelOptions,
    fingerprint: str,
    adapter: Manifest,
    measured: Measured,
    suspects: list[dict[str, Any]],
) -> ArmReport:
    version = dataset.version
    subset = subset_manifest(home, version, arm.name)
    log = read_training_log(home.adapter(version, arm.name))
    return ArmReport(
        version=version,
        arm=arm.name,
        stage=arm.stage,
        selector=arm.selector,
        seed=arm.seed,
        budget=arm.budget,
        model=portable_name(model.model),
        fingerprint=fingerprint,
        pool=subset.counts["pool"],
        subset=pl.read_parquet(home.subset(version, arm.name) / SUBSET_FILE),
        evaluation=measured.own,
        beside=measured.beside,
        asked={
            "selector": arm.options,
            "training": arm.training.model_dump(mode="json"),
            "evaluation": arm.evaluation.model_dump(mode="json"),
        },
        objective=_objective(subset),
        training=log,
        lineage={
            f"dataset:{version}": dataset.manifest.content_hash,
            **{f"parent {name}": digest for name, digest in dataset.manifest.parents.items()},
            f"subset:{version}:{arm.name}": subset.content_hash,
            f"adapter:{version}:{arm.name}": adapter.content_hash,
            "fingerprint": fingerprint,
            **({"dagster_run": adapter.run_id} if adapter.run_id else {}),
            **({"git_commit": adapter.git_commit} if adapter.git_commit else {}),
        },
        seconds={"training": log.seconds, "evaluation": measured.own.seconds},
        diagnostics=subset.details.get("diagnostics", {}),
        suspects=suspects,
        balance=_stored(home, dataset, arm, BALANCE).to_dicts(),
        forgetting=measured.forgetting,
    )


def _stored(home: Home, dataset: DatasetVersion, arm: Arm, file: str) -> pl.DataFrame:
    """A table beside the subset; empty where it was not written."""
    path = home.subset(dataset.version, arm.name) / file
    return pl.read_parquet(path) if path.exists() else pl.DataFrame()


def _objective(subset: Manifest) -> dict[str, Any]:
    named = ("objective", "value", "value_random", "knee", "tokens", "notes")
    return {key: subset.details[key] for key in named if subset.details.get(key)}


def _outcome(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    manifest: Manifest,
    measured: Measured,
    reused: bool,
    from_mlflow: Shown,
) -> Outcome:
    forgotten = measured.forgetting
    folder = home.report(dataset.version, arm.name)
    shown = {arm.selector: measured.own, **{k: v for k, v in measured.beside.items() if v}}

    models = [
        (name, e.metrics, "chosen" if e is measured.own else "plain") for name, e in shown.items()
    ]

    return Outcome(
        manifest=manifest,
        path=folder.relative_to(home.root).as_posix(),
        reused=reused,
        facts={
            **measured.own.metrics,
            **measured.own.counts,
            **(forgotten.facts() if forgotten else {}),
            **from_mlflow.facts,
        },
        plots={"scores": kept_plot(folder / "scores.png", lambda: png(bars(metric_bars(models))))},
        tables={
            "samples": preview(measured.own.samples, PREVIEWED),
            **({"forgetting": forgotten.frame().head(PREVIEW_ROWS)} if forgotten else {}),
        },
        checks={
            "beats_base": _not_worse(measured, "initial"),
            "beats_random": _not_worse(measured, "random"),
        },
        links=from_mlflow.links,
    )


def _not_worse(measured: Measured, other: str) -> Check:
    reference = measured.beside.get(other)
    if reference is None:
        return Check(True, f"nothing to compare: no evaluated {other} beside this arm")
    gaps = differences(measured.own, reference)
    if "answer_loss" not in gaps:
        return Check(True, "nothing to compare: the answer loss was not asked for")
    gap = gaps["answer_loss"]
    return Check(
        gap.mean <= 0,
        f"answer loss minus {other}'s: "
        f"{with_error(gap.mean, gap.se, 4, sign=True, ascii_only=True)} ({gap.records} records)",
        {"difference": gap.mean, "standard_error": gap.se},
    )
