"""The stage behind `eval_report`: an arm on the held-out set, beside base, random and full."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import replacing_folder
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.hashing import digest_frame, digest_json
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.base import base_evaluation, stage_heldout
from delift_pipeline.evaluation.forgetting import Forgetting
from delift_pipeline.evaluation.report import ArmReport, write_report
from delift_pipeline.evaluation.result import (
    Evaluation,
    read_evaluation,
    restricted,
)
from delift_pipeline.lineage.tracked import links_of
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions, portable_name
from delift_pipeline.selection.run import BALANCE, SUBSET
from delift_pipeline.stages.adapter import subset_manifest
from delift_pipeline.stages.arms import COMPARISONS, Arm, load_arms
from delift_pipeline.stages.forgetting import forgetting_of, line_of, rest_samples, write_rest
from delift_pipeline.stages.in_context import NAME as IN_CONTEXT
from delift_pipeline.stages.in_context import in_context_of, write_in_context
from delift_pipeline.stages.report_tracking import Evaluated, refresh_card, track_report
from delift_pipeline.stages.result import Result
from delift_pipeline.stages.suspects import suspects_of
from delift_pipeline.training.log import read_training_log

CODE_VERSION = "1"


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


@dataclass(frozen=True, kw_only=True)
class Reported(Result):
    """A stored report.

    Attributes:
        selector: The arm's selector.
        measured: What the report shows.
        links: Addresses in MLflow by title.
        leader: Who is champion now, in one sentence; None where that was settled before.
    """

    selector: str
    measured: Measured
    links: dict[str, str]
    leader: str | None


def make_report(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    tracker: Tracker | None,
    progress: Progress,
    run_id: str | None = None,
) -> Reported:
    """Evaluate an arm's adapter on the held-out set, unless the same was done before.

    A continual arm's is evaluated on the held-out sets of all earlier versions as well.

    The page is written anew where one of the evaluations it stands beside has changed.

    Raises:
        Refused: there is no adapter yet.
        DeliftError: no held-out record can be measured.
    """
    dataset, folder = load_version(home, version), home.report(version, arm.name)
    adapter = read_manifest(home.adapter(version, arm.name))
    if adapter is None:
        reason = f"{version} has no adapter of {arm.name} yet: materialise it first"
        raise Refused(Fault(reason, field="arm"))
    trained, options = home.adapter(version, arm.name), arm.evaluation

    def measure(records: pl.DataFrame) -> Evaluation:
        from delift_pipeline.evaluation.run import evaluate

        return evaluate(model, trained, records, options, progress)

    fingerprint = fingerprint_of(model).digest
    heldout = stage_heldout(dataset.heldout, dataset.target, arm.stage, options)
    base = base_evaluation(home, version, model, fingerprint, dataset.heldout, options, progress)
    base = restricted(base, heldout["record_id"])
    request, line = {"evaluation": options.request}, line_of(home, dataset, arm)
    parents = {
        f"adapter:{version}:{arm.name}": adapter.content_hash,
        f"heldout:{version}": digest_frame(heldout),
        **line.parents,
    }
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    own = read_evaluation(folder) if stored else None
    reused = own is not None
    if own is None:
        own = measure(heldout)
    kept = folder if reused else None
    shown = in_context_of(home, dataset, arm, model, heldout, kept, progress)
    rest = rest_samples(line, kept, measure)
    matrix = forgetting_of(home, dataset, arm, model, fingerprint, line, own, rest, progress)
    untrained = {BASE_MODEL: base, **({IN_CONTEXT: shown} if shown else {})}
    beside = {**untrained, **_comparisons(home, version, arm, fingerprint)}
    measured = Measured(own, beside, matrix)
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
    evaluated = Evaluated(home, dataset, arm, name, adapter, manifest, own, beside)
    if stored is None or stored.details != manifest.details or not reused:
        suspects = suspects_of(home, dataset, arm, model, fingerprint, progress)
        report = _report(home, dataset, arm, model, fingerprint, adapter, measured, suspects)
        with replacing_folder(folder) as temporary:
            write_report(temporary, report)
            write_rest(temporary, rest)
            write_in_context(temporary, shown)
            manifest.write(temporary)
        refresh_card(evaluated)
    leader = track_report(evaluated, tracker) if tracker else None
    return Reported(
        home=home,
        folder=folder,
        manifest=manifest,
        reused=reused,
        selector=arm.selector,
        measured=measured,
        links=links_of(trained, tracker) if tracker else {},
        leader=leader,
    )


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
    subset, folder = subset_manifest(home, version, arm.name), home.subset(version, arm.name)
    log = read_training_log(home.adapter(version, arm.name))
    named = ("objective", "value", "value_random", "knee", "tokens", "notes")
    # Subsets of earlier releases have no balance.
    balance = pl.read_parquet(folder / BALANCE) if (folder / BALANCE).exists() else pl.DataFrame()
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
        subset=pl.read_parquet(folder / SUBSET),
        evaluation=measured.own,
        beside=measured.beside,
        asked={
            "selector": arm.options,
            "training": arm.training.model_dump(mode="json"),
            "evaluation": arm.evaluation.model_dump(mode="json"),
        },
        objective={key: subset.details[key] for key in named if subset.details.get(key)},
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
        balance=balance.to_dicts(),
        forgetting=measured.forgetting,
    )
