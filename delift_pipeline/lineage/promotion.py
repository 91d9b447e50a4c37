"""Moving `champion` and `challenger`: the rule of `champion.py` on what a home has evaluated."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from delift_pipeline.arms import Arm, load_arms
from delift_pipeline.evaluation.base import stage_heldout
from delift_pipeline.evaluation.result import REPORT, Evaluation, read_evaluation, restricted
from delift_pipeline.lineage.champion import Candidate, Standing, standing
from delift_pipeline.lineage.tracked_models import (
    ADAPTER,
    Alias,
    point,
    registered_name,
    versions_of,
    with_alias,
)
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.lineage.tracking_store import store_lock
from delift_pipeline.lineage.tracking_values import PREFIX
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.storage.atomic import read_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import read_manifest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

VERSION, ARM, STANDING = f"{PREFIX}version", f"{PREFIX}arm", f"{PREFIX}standing"
ALIASES: tuple[Alias, ...] = ("champion", "challenger")


@dataclass(frozen=True)
class Contest:
    """The adapters of one registered model that compete.

    Attributes:
        name: The registered model.
        candidates: The evaluated arms of one version and stage, and the present holders of the
            aliases.
    """

    name: str
    candidates: tuple[Candidate, ...]


def settle(home: Home, tracker: Tracker, dataset: DatasetVersion, stage: str, model: str) -> str:
    """Decide who is champion and challenger after an evaluation, and move the aliases.

    Args:
        home: The home whose reports are compared.
        tracker: Where the adapters are registered.
        dataset: The version that was evaluated on.
        stage: The stage that was evaluated.
        model: The base model's name, never a path.

    Returns:
        One sentence on who is champion.

    Raises:
        DeliftError: the store cannot be used.
    """
    name = registered_name(tracker.experiment, dataset.manifest.details["dataset"], stage, model)
    with tracker.explained():
        _ = tracker.client  # Opening the store takes the same lock.
    with store_lock(home):
        held = {alias: _holder(tracker, name, alias) for alias in ALIASES}
        contest = Contest(name, tuple(_candidates(home, dataset, stage, model, held.values())))
        decided = standing(contest.candidates, held["champion"])
        _move(tracker, contest, decided)
    return _sentence(name, decided)


def _holder(tracker: Tracker, name: str, alias: Alias) -> tuple[str, str, str] | None:
    version = with_alias(tracker, name, alias)
    return None if version is None else _key(version)


def _key(version: "ModelVersion") -> tuple[str, str, str]:
    tags = version.tags
    return tags.get(VERSION, ""), tags.get(ARM, ""), tags.get(ADAPTER, "")


def _candidates(
    home: Home,
    dataset: DatasetVersion,
    stage: str,
    model: str,
    holders: Iterable[tuple[str, str, str] | None],
) -> list[Candidate]:
    arms = {arm.name: arm for arm in load_arms(home) if arm.stage == stage}
    asked = {(dataset.version, name) for name in arms}
    asked |= {(held[0], held[1]) for held in holders if held and held[1] in arms}
    known = set(home.versions())
    found = [
        candidate_of(home, load_version(home, version), arms[name], model)
        for version, name in sorted(asked)
        if version in known
    ]
    return [one for one in found if one is not None]


def candidate_of(home: Home, dataset: DatasetVersion, arm: Arm, model: str) -> Candidate | None:
    """An arm's evaluated adapter; None where it is not evaluated, or on another base model."""
    version = dataset.version
    own = _evaluated(home, version, arm.name, model)
    adapter = read_manifest(home.adapter(version, arm.name))
    report = read_manifest(home.report(version, arm.name))
    if own is None or adapter is None or report is None or report.fingerprint is None:
        return None
    if report.parents.get(f"adapter:{version}:{arm.name}") != adapter.content_hash:
        return None
    heldout = stage_heldout(dataset.heldout, dataset.target, arm.stage, arm.evaluation)
    base = read_evaluation(home.base_report(version, report.fingerprint))
    return Candidate(
        version=version,
        arm=arm.name,
        adapter=adapter.content_hash,
        own=own,
        base=restricted(base, heldout["record_id"]) if base else None,
        random=_evaluated(home, version, f"{arm.stage}.random", model, report.fingerprint),
        is_random=arm.selector == "random",
    )


def _evaluated(
    home: Home, version: str, arm: str, model: str, fingerprint: str | None = None
) -> Evaluation | None:
    folder = home.report(version, arm)
    evaluation = read_evaluation(folder)
    if evaluation is None:
        return None
    facts = read_json(folder / REPORT)
    same = facts["model"] == model and fingerprint in (None, facts["fingerprint"])
    return evaluation if same else None


def _move(tracker: Tracker, contest: Contest, decided: Standing) -> None:
    """Point the aliases, and tag every registered candidate with how it stands."""
    with tracker.explained():
        known = {_key(version): version for version in versions_of(tracker, contest.name)}
    chosen = {"champion": decided.champion, "challenger": decided.challenger}
    for alias in ALIASES:
        winner = chosen[alias]
        point(tracker, contest.name, alias, known.get(winner.key) if winner else None)
    for candidate in contest.candidates:
        if candidate.key in known:
            _tag(tracker, known[candidate.key], _place(candidate, decided))


def _tag(tracker: Tracker, version: "ModelVersion", text: str) -> None:
    if version.tags.get(STANDING) != text:
        with tracker.explained():
            tracker.client.set_model_version_tag(version.name, str(version.version), STANDING, text)


def _place(candidate: Candidate, decided: Standing) -> str:
    if candidate is decided.champion:
        return "champion"
    if candidate is decided.challenger:
        return "challenger"
    return decided.objections.get(candidate.key, "eligible")


def _sentence(name: str, decided: Standing) -> str:
    if decided.champion is None:
        whys = sorted({f"{key[1]}: {why}" for key, why in decided.objections.items()})
        return f"{name} has no champion: {'; '.join(whys) or 'nothing is evaluated'}"
    champion = decided.champion
    return f"champion of {name} is {champion.version} {champion.arm} (by {decided.metric})"
