"""Decide which adapter is champion and which is challenger of a dataset, stage and base model.

One metric decides: the first one, in the order of tables, that any candidate has.

1. A candidate is eligible if it is not worse than the base model and not worse than the random arm
   of its stage on the same version: the mean difference, paired by held-out record, favours it or
   is zero. A random arm is compared with the base model alone.
2. A candidate that cannot be compared is not eligible: its metric is missing or not finite, the
   base model or the random arm is not evaluated yet, or one of the two was not measured on some
   held-out records. (Leaving out hard records would look like an improvement.)
3. The champion stays while it is eligible and no other candidate is better. A candidate replaces it
   only if it is better on the held-out records of both, of which there must be at least one. If
   there is no champion, candidates are compared in the order of version and arm.
4. The challenger is decided in the same way among the other eligible candidates.

Only the means decide. Standard errors are shown, but a champion's lead may be not resolved: the
rule only prevents that a worse adapter is champion.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.formatting import with_error
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions, MetricName
from delift_pipeline.evaluation.result import (
    REPORT,
    Evaluation,
    differences,
    read_evaluation,
    restrict_evaluation,
    stage_heldout,
)
from delift_pipeline.lineage.tracked import registered_name
from delift_pipeline.lineage.tracking import PREFIX, Tracker, split_arm
from delift_pipeline.lineage.tracking_store import store_lock
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.selection.options import Stage

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PROMOTION_TAG = f"{PREFIX}standing"

Key = tuple[str, str, str]
"""What identifies an adapter: dataset version, arm and content hash."""


@dataclass(frozen=True)
class Candidate:
    """An evaluated adapter and the evaluations that it must not be worse than.

    Attributes:
        base: The base model on the same held-out set; None if it is not evaluated.
        random: The random arm of the stage; None if it is not evaluated.
    """

    version: str
    arm: str
    adapter: str
    own: Evaluation = field(repr=False)
    base: Evaluation | None = field(repr=False)
    random: Evaluation | None = field(repr=False, default=None)
    is_random: bool = False

    @property
    def key(self) -> Key:
        """What identifies the adapter."""
        return self.version, self.arm, self.adapter


@dataclass(frozen=True)
class PromotionDecision:
    """Which candidates are champion and challenger, and why others cannot be.

    Attributes:
        metric: The metric that decided; None if nothing was measured.
        champion: The best eligible adapter, or None.
        challenger: The best of the others, or None.
        objections: Candidate -> why it is not eligible.
    """

    metric: MetricName | None
    champion: Candidate | None
    challenger: Candidate | None
    objections: dict[Key, str]

    def status_of(self, candidate: Candidate) -> str:
        """Return a candidate's status in a word, or why it is not eligible."""
        if candidate is self.champion:
            return "champion"
        if candidate is self.challenger:
            return "challenger"
        return self.objections.get(candidate.key, "eligible")


def decide_promotion(
    candidates: Sequence[Candidate], champion: Key | None = None
) -> PromotionDecision:
    """Decide by the rule above. `champion` is the key of the present champion, if there is one."""
    measured = {name for one in candidates for name in one.own.metrics}
    metric: MetricName | None = next((name for name in METRICS if name in measured), None)
    if metric is None:
        return PromotionDecision(None, None, None, {})
    objections = {one.key: _objection(one, metric) for one in candidates}
    eligible = sorted(
        (one for one in candidates if objections[one.key] is None),
        key=lambda one: (one.key != champion, one.key),
    )
    best = _winner(eligible, metric)
    second = _winner([one for one in eligible if one is not best], metric)
    return PromotionDecision(
        metric, best, second, {key: why for key, why in objections.items() if why}
    )


def _objection(candidate: Candidate, metric: MetricName) -> str | None:
    """Return why a candidate cannot be champion, in a few words, or None if it can."""
    title, own = METRICS[metric].title, candidate.own
    value = own.metrics.get(metric)
    if value is None or not math.isfinite(value):
        return f"its {title} was not measured" if value is None else f"its {title} is {value}"
    references = {"the base model": candidate.base}
    if not candidate.is_random:
        references["the random arm"] = candidate.random
    for name, reference in references.items():
        if reference is None:
            return f"{name} is not evaluated on {candidate.version} yet"
        if missing := measured_records(reference, metric) ^ measured_records(own, metric):
            what = f"{title} and that of {name} are on different records"
            return f"{what} ({len(missing)} in one only)"
        gap = differences(own, reference)[metric]
        if not gap.improvement >= 0:
            lead = with_error(-gap.improvement, gap.se, 4, ascii_only=True)
            return f"{title} {name} is better by {lead}"
    return None


def measured_records(evaluation: Evaluation, metric: MetricName) -> set[str]:
    """Return the held-out records that a metric was measured on."""
    samples = evaluation.samples
    if metric not in samples.columns:
        return set()
    return set(samples.filter(pl.col(metric).is_not_null())["record_id"])


def _winner(eligible: Sequence[Candidate], metric: MetricName) -> Candidate | None:
    """Compare each candidate with the best so far. In a tie the earlier one stays."""
    best: Candidate | None = None
    for one in eligible:
        gap = differences(one.own, best.own).get(metric) if best else None
        if best is None or (gap is not None and gap.improvement > 0):
            best = one
    return best


def update_champion(
    home: Home,
    tracker: Tracker,
    dataset: DatasetVersion,
    stage: Stage,
    model: str,
    arms: Mapping[str, EvaluationOptions],
) -> str:
    """Decide about champion and challenger after an evaluation, and move their MLflow aliases.

    `arms` are all arms of the stage with their evaluation options; `model` is a name, never a path.
    Returns one sentence that names the champion.

    Raises:
        DeliftError: the MLflow store cannot be used.
    """
    name = registered_name(tracker.experiment, dataset.manifest.details["dataset"], stage, model)
    alias_names = ("champion", "challenger")
    with tracker.translate_errors(), store_lock(home):
        client, where = tracker.client, f"name = '{name}'"
        models = client.search_registered_models(where)
        # Version numbers are integers in a database and text from a server.
        aliases = {k: str(v) for k, v in models[0].aliases.items()} if models else {}
        registered = {_key(version): version for version in client.search_model_versions(where)}
        holders = {
            alias: key
            for key, version in registered.items()
            for alias in alias_names
            if aliases.get(alias) == str(version.version)
        }
        arms_to_compare = {(dataset.version, arm) for arm in arms}
        arms_to_compare |= {key[:2] for key in holders.values() if key[1] in arms}
        stored = {version for version, _ in arms_to_compare} & set(home.versions())
        known = {version: load_version(home, version) for version in stored}
        evaluated = [
            _candidate(home, known[version], stage, arm, arms[arm], model)
            for version, arm in sorted(arms_to_compare)
            if version in known
        ]
        candidates = list(filter(None, evaluated))
        decision = decide_promotion(candidates, holders.get("champion"))
        for alias, chosen in zip(
            alias_names, (decision.champion, decision.challenger), strict=True
        ):
            to = registered.get(chosen.key) if chosen else None
            if to is not None and holders.get(alias) != _key(to):
                client.set_registered_model_alias(name, alias, str(to.version))
            elif to is None and alias in aliases:
                client.delete_registered_model_alias(name, alias)
        for one in candidates:
            version, text = registered.get(one.key), decision.status_of(one)
            if version is not None and version.tags.get(PROMOTION_TAG) != text:
                client.set_model_version_tag(name, str(version.version), PROMOTION_TAG, text)
    if one := decision.champion:
        return f"champion of {name} is {one.version} {one.arm} (by {decision.metric})"
    whys = sorted({f"{key[1]}: {why}" for key, why in decision.objections.items()})
    return f"{name} has no champion: {'; '.join(whys) or 'nothing is evaluated'}"


def _key(version: "ModelVersion") -> Key:
    tags = ("version", "arm", "adapter")
    named, arm, adapter = (version.tags.get(PREFIX + tag, "") for tag in tags)
    return named, arm, adapter


def _candidate(
    home: Home,
    dataset: DatasetVersion,
    stage: Stage,
    arm: str,
    options: EvaluationOptions,
    model: str,
) -> Candidate | None:
    """Return an arm's evaluated adapter; None if it is not evaluated or has another base model."""
    version = dataset.version
    own = _own_evaluation(home, version, arm, model)
    adapter = read_manifest(home.adapter(version, arm))
    report = read_manifest(home.report(version, arm))
    if own is None or adapter is None or report is None or report.fingerprint is None:
        return None
    if report.parents.get(f"adapter:{version}:{arm}") != adapter.content_hash:
        return None
    base = read_evaluation(home.base_report(version, report.fingerprint))
    if base is not None:
        heldout = stage_heldout(dataset.heldout, dataset.target, stage, options)
        base = restrict_evaluation(base, heldout["record_id"])
    random = _own_evaluation(home, version, f"{stage}.random", model, report.fingerprint)
    is_random = split_arm(arm)[1] == "random"
    return Candidate(version, arm, adapter.content_hash, own, base, random, is_random)


def _own_evaluation(
    home: Home, version: str, arm: str, model: str, fingerprint: str | None = None
) -> Evaluation | None:
    folder = home.report(version, arm)
    facts = read_json(folder / REPORT) if (folder / REPORT).is_file() else {}
    same = facts.get("model") == model and fingerprint in (None, facts["fingerprint"])
    return read_evaluation(folder) if same else None
