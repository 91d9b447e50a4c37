"""`delift lineage` and `delift explain`: what made an adapter, what became of a record and why."""

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.home import Home

if TYPE_CHECKING:
    from delift_pipeline.lineage.openlineage import StepTimes, Times
    from delift_pipeline.stages.explain import Explanation

SHOWN = 10


def lineage(
    adapter: str | None = Option(None, metavar="V/ARM", help="Show what made this adapter."),
    record: str | None = Option(
        None, help="Show what became of this record: record_id, its beginning, or the file's id."
    ),
    version: str | None = Option(None, help="Show what this version changed against its parents."),
    openlineage: Path | None = Option(
        None, help="Also write the runs that led there as OpenLineage events, one a line."
    ),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Show what made an adapter, or what became of a record or of a version.

    Example: delift lineage --adapter V/instruction_tuning.delift_trusted
    """
    place = Home.at(home)
    asked = {"--adapter": adapter, "--record": record, "--version": version}
    given = {option: value for option, value in asked.items() if value is not None}
    if len(given) != 1:
        raise Refused("give one of --adapter V/ARM, --record ID and --version V")
    shared.check_outputs({"--openlineage": openlineage}, as_json=as_json)
    ((option, value),) = given.items()
    found, text, names = _answered(place, option, value)
    if openlineage is not None:
        from delift_pipeline.lineage.artifacts import found as stored
        from delift_pipeline.lineage.openlineage import write_openlineage

        known = (stored(place, name) for name in dict.fromkeys(names))
        subjects = [artifact for artifact in known if artifact is not None]
        with _dagster_times(place) as step_times:
            write_openlineage(place, subjects, openlineage, step_times)
    shared.print_result(as_json, found, text, shared.message_stream(openlineage))


@contextmanager
def _dagster_times(home: Home) -> Iterator["StepTimes"]:
    """When steps started and ended, as far as the home's Dagster instance knows."""
    if not (home.dagster / "dagster.yaml").is_file():
        yield lambda run, step: None
        return
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        utc = partial(dt.datetime.fromtimestamp, tz=dt.UTC)

        @cache
        def steps_of(run: str) -> dict[str, "Times"]:
            return {
                step.step_key: (utc(step.start_time), utc(step.end_time))
                for step in instance.get_run_step_stats(run)
                if step.start_time is not None and step.end_time is not None
            }

        yield lambda run, step: steps_of(run).get(step)


def split_adapter(value: str, fault: Fault | None = None) -> tuple[str, str]:
    """`V/ARM` as its two names; `fault` says it otherwise where it has another form.

    Raises:
        Refused: it has no slash.
    """
    version, _, arm = value.partition("/")
    if not (version and arm):
        said = f"write V/ARM, such as mydata-v1/continual.delift, not {value!r}"
        raise Refused(fault or Fault(said))
    return version, arm


def _answered(home: Home, option: str, value: str) -> tuple[dict[str, Any], str, list[str]]:
    """What was found, the same for people, and the artifacts whose runs an export tells of."""
    from delift_pipeline.lineage.adapter import adapter_lineage
    from delift_pipeline.lineage.record import record_lineage
    from delift_pipeline.lineage.version import version_lineage

    if option == "--adapter":
        found = asdict(adapter_lineage(home, *split_adapter(value)))
        own = found["adapter"]
        return found, _adapter_text(found), [f"report:{own['version']}:{own['arm']}", own["name"]]
    if option == "--record":
        found = asdict(record_lineage(home, value))
        names = [f"dataset:{place['version']}" for place in found["versions"]]
        names += [f"subset:{one['version']}:{one['arm']}" for one in found["subsets"]]
        names += [one["adapter"] for one in found["adapters"]]
        names += [f"report:{one['version']}:{one['arm']}" for one in found["reports"]]
        return found, _record_text(found), names
    found = asdict(version_lineage(home, value))
    names = [f"dataset:{found['version']}"]
    names += [f"subset:{found['version']}:{one['arm']}" for one in found["subsets"]]
    return found, _version_text(found), names


def _adapter_text(found: dict[str, Any]) -> str:
    own, subset, model, runs = (found[k] for k in ("adapter", "subset", "model", "runs"))
    records = found["records"]
    trained = "not known" if records is None else f"{len(records):,}"
    lines = [
        f"{own['name']}  {own['content_hash']}  ({own['path']}, {own['created']})",
        f"  records   {trained}; {own['method']}, from {own['started_from'] or 'the base model'}",
    ]
    for one in found["data"]:
        follows = f" after {', '.join(one['parents'])}" if one["parents"] else ""
        size = f"{one['counts']['pool']:,} records"
        lines.append(f"  data      {one['version']}{follows}: {size}  {one['content_hash']}")
    if subset:
        asked = f"budget {subset['budget']}, seed {subset['seed']}"
        lines.append(f"  subset    {subset['selector']}, {asked}  {subset['content_hash']}")
    lines += [f"  model     fingerprint {model.get('fingerprint', 'not known')}"]
    made_of = [f"  {one['made_of']}  {one['hash']}  {one['state']}" for one in found["scores"]]
    lines += list(dict.fromkeys(made_of))
    lines += [f"  {name} {value:.4g}" for name, value in found["metrics"].items()]
    lines += [f"  dagster   {name}: {run}" for name, run in runs["dagster"].items()]
    if runs["mlflow"]:
        lines.append(f"  mlflow    {runs['mlflow']['run_id']}  {runs['mlflow']['link']}")
    code = found["code"][own["name"]]
    packages = ", ".join(f"{name} {version}" for name, version in code["packages"].items())
    lines.append(f"  code      delift {code['delift']}, commit {code['git_commit']}, {packages}")
    lines += [f"  note      {note}" for note in found["notes"]]
    picks = []
    for row in records or ():
        gain = "" if row["gain"] is None else f", gain {row['gain']:.4g}"
        out = f", left out: {row['left_out']}" if row["left_out"] else ""
        picks.append(f"    {row['record_id']}  rank {row['rank']} in {row['adapter']}{gain}{out}")
    return "\n".join(lines + _limited(picks))


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"    and {more:,} more (--json lists all)"] if more > 0 else [])


def _record_text(found: dict[str, Any]) -> str:
    texts = found["texts"]
    prompt = " ".join(filter(None, (texts["instruction"], texts["input"])))
    # On one line, with escapes for what a terminal would obey.
    asked, answered = (json.dumps(text[:120]) for text in (prompt, texts["output"]))
    lines = [found["record_id"], f"  {asked} -> {answered}"]
    lines += [
        f"  {place['part']} of {place['version']} as {', '.join(place['source_ids'])}"
        for place in found["versions"]
    ]
    lines += [f"  not scored in {v}: {why}" for v, why in found["unscorable"].items()]
    lines += [f"  {one['version']}/{one['arm']}: {one['reason']}" for one in found["subsets"]]
    for one in found["adapters"]:
        used = f"trained on it, through {one['through']}" if one["through"] else "trained on it"
        used = f"not trained on it: {one['left_out']}" if one["left_out"] else used
        lines.append(f"  {one['adapter']} was {used}")
    lines += [
        f"  {one['version']}/{one['arm']} measured "
        + ", ".join(f"{k} {v:.4g}" for k, v in one["metrics"].items() if not k.endswith("_se"))
        for one in found["reports"]
    ]
    lines += [f"  held out, measured: {json.dumps(one)}" for one in found["measured"]]
    return "\n".join(lines)


def _version_text(found: dict[str, Any]) -> str:
    children = ", ".join(found["children"]) or "none"
    lines = [
        f"{found['version']} of {found['dataset']}  {found['content_hash']}; "
        f"{found['counts']['pool']:,} records; followed by {children}"
    ]
    for one in found["parents"]:
        counts = [f"{len(one[kind]):,} {kind}" for kind in ("added", "removed", "changed")]
        counts.append(f"{one['unchanged']:,} unchanged")
        lines.append(f"  against {one['version']}: {', '.join(counts)}")
    for one in found["subsets"]:
        moved = f"{one['selected']:,} picks"
        if one["against"] is None:
            moved += f"; {one['parent']} has no subset to compare with"
        else:
            moved = f"{one['kept']:,} of {moved} were in {one['parent']}/{one['against']}; "
            moved += f"{len(one['came']):,} came, {len(one['went']):,} went"
        lines.append(f"  {one['arm']}: {moved}")
        moves = [f"    + {row['record_id']}  {row['why']}" for row in one["came"]]
        moves += [f"    - {row['record_id']}  {row['why']}" for row in one["went"]]
        lines += _limited(moves)
    return "\n".join(lines)


@shared.takes_model
def explain(
    record: str = Option(..., help="The record: record_id, its beginning, or the file's own id."),
    version: str | None = Option(None, help="The dataset version."),
    arm: str | None = Option(None, help="The arm, e.g. instruction_tuning.delift_trusted."),
    why: Path | None = Option(
        None, help="The file of reasons that select wrote, instead of a version and an arm."
    ),
    model: str | None = Option(
        None, help="A model that computes how each answer token changes after a neighbour."
    ),
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Show why a record was chosen or dropped, and what its near prompts say of its answer.

    Example: delift explain --why reasons.jsonl --record ID
    """
    from delift_pipeline.stages.explain import explain as explained
    from delift_pipeline.stages.explain import explain_file

    options = None if model is None else flags.options(model)
    if why is not None and version is None and arm is None and options is None:
        found = explain_file(why, record)
    elif why is None and version is not None and arm is not None:
        found = explained(Home.at(home), version, arm, record, options)
    else:
        said = "give --version and --arm of a stored subset, or --why FILE that select wrote"
        raise Refused(f"{said} (--model goes with the former)")
    shared.print_result(as_json, asdict(found), as_text(found))


def as_text(found: "Explanation") -> str:
    """The explanation for people."""
    record = found.record
    text = record.get("text")  # a file of reasons holds it as one line
    if text is None:
        prompt = " ".join(filter(None, (record["instruction"], record["input"])))
        text = f"{prompt} -> {record['output']}"
    names = f"{', '.join(record['source_ids'])} ({found.record_id})"
    lines = [f"{names} under {found.arm} on {found.version}", f"  {text}", *_place(found)]
    lines += _listed("near duplicates", found.near_duplicates)
    return "\n".join([*lines, *_trust(found.evidence), *_tokens(found.tokens)])


def _place(found: "Explanation") -> list[str]:
    if not found.selected:
        if found.unscorable is not None:
            return [f"dropped; it cannot be scored: {found.unscorable}"]
        if found.covered_by is None:
            return ["dropped; no chosen record covers it"]
        by = found.covered_by
        return [f"dropped; covered {found.coverage:.3f} by {by['source_id']}: {by['text']}"]
    gain = "" if found.gain is None else f", gain {found.gain:.4f}"
    own = "" if found.self_share is None else f", {found.self_share:.0%} of it its own row"
    kind = "replayed" if found.replayed else "chosen"
    return [f"{kind} at rank {found.rank}{gain}{own}", *_listed("covers", found.covers)]


def _listed(title: str, records: list[dict[str, str]]) -> list[str]:
    if not records:
        return []
    lines = [f"{title} {len(records):,}:"]
    lines += [f"  {one['source_id']}: {one['text']}" for one in records[:SHOWN]]
    return lines + (["  ..."] if len(records) > SHOWN else [])


def _trust(evidence: dict[str, Any] | None) -> list[str]:
    if evidence is None:
        return ["trust: not known, no near pairs were scored"]
    said = "SUSPECTED WRONG" if evidence["suspected"] else "not suspected"
    relative = evidence.get("relative") or 0.0
    why = ""
    if relative < 0 and evidence["trust"] == 1:
        why = f": its nearest prompts are too far to be believed (weight {evidence['weight']:.3f})"
    elif "agreement" in evidence:
        agreed = f"near prompts agree {evidence['agreement']:+.3f}"
        why = f": {agreed}, {relative:+.3f} against its surroundings"
    lines = [f"trust {evidence['trust']:.3f} ({said}){why}"]
    for one in evidence["neighbours"]:
        verb = "disagrees" if one["disagrees"] else "agrees"
        lines.append(
            f"  {one['source_id']} {verb} (prompt cosine {one['similarity']:.2f}, helped by this "
            f"record {_signed(one['helps'])}, helps it {_signed(one['helped'])}): {one['text']}"
        )
    return lines


def _tokens(tokens: list[dict[str, Any]]) -> list[str]:
    if not tokens:
        return []
    lines = [
        "log-probability of the answer's tokens, alone and its change after a neighbour (nats):"
    ]
    for one in tokens:
        values = zip(one["tokens"], one["alone"], one["change"], strict=True)
        shown = "  ".join(f"{t!r} {a:.3f} {c:+.3f}" for t, a, c in values)
        lines.append(f"  after {one['source_id']} ({sum(one['change']):+.3f} in all): {shown}")
    return lines


def _signed(value: float | None) -> str:
    return "not scored" if value is None else f"{value:+.3f}"
