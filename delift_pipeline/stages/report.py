"""The stage behind `eval_report`: evaluate an arm, and compare it with the reference arms."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import replace_folder, write_parquet
from delift_pipeline.core.hashing import digest_frame, digest_json
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.forgetting import Forgetting
from delift_pipeline.evaluation.report import ArmReport, write_report
from delift_pipeline.evaluation.result import (
    Evaluation,
    read_evaluation,
    restrict_evaluation,
    stage_heldout,
    write_evaluation,
)
from delift_pipeline.lineage.tracked import links_of
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.records.stored import load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions, portable_name
from delift_pipeline.selection.run import BALANCE, SUBSET
from delift_pipeline.stages.adapter import subset_manifest
from delift_pipeline.stages.arms import COMPARISONS, Arm, load_arms
from delift_pipeline.stages.extra_evaluations import (
    EARLIER,
    IN_CONTEXT,
    Subject,
    earlier_versions,
    in_context_evaluation,
    measure_forgetting,
    samples_of_earlier,
)
from delift_pipeline.stages.report_tracking import refresh_card, track_report
from delift_pipeline.stages.result import Result, required_manifest
from delift_pipeline.stages.suspects import suspects_of
from delift_pipeline.training.log import read_training_log

CODE_VERSION = "1"


@dataclass(frozen=True)
class ArmEvaluations:
    """An arm's evaluation, and those that it is compared with.

    Attributes:
        beside: The evaluations of `initial`, of `in_context` if the arm asks for it, and of the
            stage's `random` and `full` arms (None if they are not evaluated yet).
        forgetting: The matrix of models and held-out sets. None outside the continual stage.
    """

    own: Evaluation
    beside: dict[str, Evaluation | None]
    forgetting: Forgetting | None = None


@dataclass(frozen=True)
class ReportResult(Result):
    """A stored report.

    Attributes:
        template: The name of the prompt template.
        links: Addresses in MLflow by title.
        leader: One sentence on who is champion now. None if this report was logged before.
    """

    selector: str
    evaluations: ArmEvaluations
    template: str
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
) -> ReportResult:
    """Evaluate an arm's adapter on the held-out set, unless the stored report has the same inputs.

    A continual arm is also evaluated on the held-out sets of all earlier versions. The page is
    written again if an evaluation that it is compared with has changed.

    Raises:
        InputError: the arm has no adapter yet.
        DeliftError: no held-out record can be measured.
    """
    dataset, folder = load_version(home, version), home.report(version, arm.name)
    trained, options = home.adapter(version, arm.name), arm.evaluation
    reason = f"{version} has no adapter of {arm.name} yet. Materialise `adapter` first"
    adapter = required_manifest(trained, reason, field="arm")
    fingerprint = fingerprint_of(model).digest
    subject = Subject(home, dataset, arm, model, fingerprint, adapter, progress)

    def measure(records: pl.DataFrame) -> Evaluation:
        from delift_pipeline.evaluation.run import evaluate

        return evaluate(model, trained, records, options, progress)

    heldout = stage_heldout(dataset.heldout, dataset.target, arm.stage, options)
    base = restrict_evaluation(subject.base_evaluation(dataset), heldout["record_id"])
    earlier = earlier_versions(home, dataset, arm)
    request = {"evaluation": options.request}
    parents = {
        f"adapter:{version}:{arm.name}": adapter.content_hash,
        f"heldout:{version}": digest_frame(heldout),
        **{f"heldout:{one.version}": digest_frame(one.heldout) for one in earlier},
    }
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    stored_own = read_evaluation(folder) if stored else None
    own, stored_folder = stored_own or measure(heldout), folder if stored_own else None
    in_context = in_context_evaluation(subject, heldout, stored_folder)
    rest = samples_of_earlier(dataset, earlier, stored_folder, measure)
    forgetting = measure_forgetting(subject, earlier, own, rest)
    beside: dict[str, Evaluation | None] = {BASE_MODEL: base}
    beside |= {IN_CONTEXT: in_context} if in_context else {}
    beside |= _reference_evaluations(subject)
    hashes = {name: other and other.content_hash for name, other in beside.items()}
    details: dict[str, Any] = {"beside": hashes}
    if forgetting is not None:
        details["forgetting"] = digest_json(forgetting.as_json())
    more = [digest_frame(rest)] if rest is not None else []
    contents = [own.content_hash, *more, *([in_context.content_hash] if in_context else [])]
    manifest = Manifest(
        kind="report",
        content_hash=digest_json(contents) if contents[1:] else own.content_hash,
        parents=parents,
        fingerprint=fingerprint,
        counts=own.counts,
        details=details,
        request=request,
        code_version=CODE_VERSION,
        run_id=stored.run_id if stored else run_id,
    )
    evaluations = ArmEvaluations(own, beside, forgetting)
    if stored_own is None or stored is None or stored.details != details:
        suspects = suspects_of(home, dataset, arm, model, fingerprint, progress)
        with replace_folder(folder) as temporary:
            write_report(temporary, _report(subject, evaluations, suspects))
            if rest is not None:
                write_parquet(temporary / EARLIER, rest)
            if in_context:
                write_evaluation(temporary / IN_CONTEXT, in_context, {"kind": IN_CONTEXT})
            manifest.write(temporary)
        refresh_card(subject, own, beside)
    leader = track_report(subject, manifest, own, beside, tracker) if tracker else None
    links = links_of(trained, tracker) if tracker else {}
    reused = stored_own is not None
    about = (arm.selector, evaluations, fingerprint_of(model).template)
    return ReportResult(home, folder, manifest, reused, *about, links, leader)


def _reference_evaluations(subject: Subject) -> dict[str, Evaluation | None]:
    """Read the evaluations of the stage's random and full arms with the same model."""
    home, arm, evaluations = subject.home, subject.arm, {}
    known = set(load_arms(home).names) - {arm.name}
    for selector in COMPARISONS:
        if (name := f"{arm.stage}.{selector}") in known:
            folder = home.report(subject.dataset.version, name)
            manifest = read_manifest(folder)
            same = manifest is not None and manifest.fingerprint == subject.fingerprint
            evaluations[selector] = read_evaluation(folder) if same else None
    return evaluations


def _report(
    subject: Subject, evaluations: ArmEvaluations, suspects: list[dict[str, Any]]
) -> ArmReport:
    dataset, arm, adapter = subject.dataset, subject.arm, subject.adapter
    version, folder = dataset.version, subject.home.subset(dataset.version, arm.name)
    subset, log = (
        subset_manifest(subject.home, version, arm.name),
        read_training_log(subject.folder),
    )
    details = ("objective", "value", "value_random", "knee", "tokens", "notes")
    # Subsets that earlier releases stored have no balance.
    balance = pl.read_parquet(folder / BALANCE) if (folder / BALANCE).exists() else pl.DataFrame()
    return ArmReport(
        version=version,
        arm=arm.name,
        stage=arm.stage,
        selector=arm.selector,
        seed=arm.seed,
        budget=arm.budget,
        model=portable_name(subject.model.model),
        fingerprint=subject.fingerprint,
        template=fingerprint_of(subject.model).template,
        pool=subset.counts["pool"],
        subset=pl.read_parquet(folder / SUBSET),
        evaluation=evaluations.own,
        beside=evaluations.beside,
        options_by_part={
            "selector": arm.options,
            **arm.model_dump(mode="json", include={"training", "evaluation"}),
        },
        objective={key: subset.details[key] for key in details if subset.details.get(key)},
        training=log,
        lineage={
            f"dataset:{version}": dataset.manifest.content_hash,
            **{f"parent {name}": digest for name, digest in dataset.manifest.parents.items()},
            f"subset:{version}:{arm.name}": subset.content_hash,
            f"adapter:{version}:{arm.name}": adapter.content_hash,
            "fingerprint": subject.fingerprint,
            **({"dagster_run": adapter.run_id} if adapter.run_id else {}),
            **({"git_commit": adapter.git_commit} if adapter.git_commit else {}),
        },
        seconds={"training": log.seconds, "evaluation": evaluations.own.seconds},
        diagnostics=subset.details.get("diagnostics", {}),
        suspects=suspects,
        balance=balance.to_dicts(),
        forgetting=evaluations.forgetting,
    )
