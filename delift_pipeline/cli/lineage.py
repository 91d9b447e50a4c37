"""`delift lineage` and `delift explain`: trace adapters, versions and records."""

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
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.home import Home

if TYPE_CHECKING:
    from delift_pipeline.lineage.openlineage import StepTimes, Times
    from delift_pipeline.stages.explain import Explanation

MOST_LINES = 10


def lineage(
    adapter: str | None = Option(
        None, metavar="V/ARM", help="Show what this adapter was made from."
    ),
    record: str | None = Option(
        None,
        help="Show where this record was used. Give its record_id, the beginning of its "
        "record_id, or its id in the file.",
    ),
    version: str | None = Option(None, help="Show how this version differs from its parents."),
    openlineage: Path | None = Option(
        None,
        help="Also write OpenLineage events to this file, one on each line. They describe "
        "the runs that made the shown artifacts.",
    ),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Show what an adapter was made from, or what used a record.

    With --version: show what a version changed.

    Example: delift lineage --adapter V/instruction_tuning.delift_trusted
    """
    place = Home.at(home)
    options = {"--adapter": adapter, "--record": record, "--version": version}
    chosen = {option: value for option, value in options.items() if value is not None}
    if len(chosen) != 1:
        raise InputError("pass one of --adapter V/ARM, --record ID and --version V")
    shared.check_outputs({"--openlineage": openlineage}, as_json=as_json)
    ((option, value),) = chosen.items()
    facts, text, names = _find_lineage(place, option, value)
    if openlineage is not None:
        from delift_pipeline.lineage.artifacts import find_artifact as stored
        from delift_pipeline.lineage.openlineage import write_openlineage

        known = (stored(place, name) for name in dict.fromkeys(names))
        subjects = [artifact for artifact in known if artifact is not None]
        with _dagster_times(place) as step_times:
            write_openlineage(place, subjects, openlineage, step_times)
    shared.print_result(as_json, facts, text, shared.message_stream(openlineage))


@contextmanager
def _dagster_times(home: Home) -> Iterator["StepTimes"]:
    """Return a function that reads a step's start and end from the home's Dagster instance."""
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
    """Split `V/ARM` into its two names.

    Raises:
        InputError: the value has another form. The fault is `fault`, if one is passed.
    """
    version, _, arm = value.partition("/")
    if not (version and arm):
        reason = f"write V/ARM, such as mydata-v1/continual.delift, not {value!r}"
        raise InputError(fault or Fault(reason))
    return version, arm


def _find_lineage(home: Home, option: str, value: str) -> tuple[dict[str, Any], str, list[str]]:
    """Return the lineage, the same as text, and the artifacts whose runs can be exported."""
    from delift_pipeline.lineage.adapter import adapter_lineage
    from delift_pipeline.lineage.record import record_lineage
    from delift_pipeline.lineage.version import version_lineage

    if option == "--adapter":
        facts = asdict(adapter_lineage(home, *split_adapter(value)))
        own = facts["adapter"]
        return facts, _adapter_text(facts), [f"report:{own['version']}:{own['arm']}", own["name"]]
    if option == "--record":
        facts = asdict(record_lineage(home, value))
        names = [f"dataset:{place['version']}" for place in facts["versions"]]
        names += [f"subset:{one['version']}:{one['arm']}" for one in facts["subsets"]]
        names += [one["adapter"] for one in facts["adapters"]]
        names += [f"report:{one['version']}:{one['arm']}" for one in facts["reports"]]
        return facts, _record_text(facts), names
    facts = asdict(version_lineage(home, value))
    names = [f"dataset:{facts['version']}"]
    names += [f"subset:{facts['version']}:{one['arm']}" for one in facts["subsets"]]
    return facts, _version_text(facts), names


def _adapter_text(facts: dict[str, Any]) -> str:
    own, subset, model, runs = (facts[k] for k in ("adapter", "subset", "model", "runs"))
    records = facts["records"]
    trained = "not known" if records is None else f"{len(records):,}"
    lines = [
        f"{own['name']}  {own['content_hash']}  ({own['path']}, {own['created']})",
        f"  records   {trained}; {own['method']}, from {own['started_from'] or 'the base model'}",
    ]
    for one in facts["data"]:
        follows = f" after {', '.join(one['parents'])}" if one["parents"] else ""
        size = f"{one['counts']['pool']:,} records"
        lines.append(f"  data      {one['version']}{follows}: {size}  {one['content_hash']}")
    if subset:
        settings = f"budget {subset['budget']}, seed {subset['seed']}"
        lines.append(f"  subset    {subset['selector']}, {settings}  {subset['content_hash']}")
    lines += [f"  model     fingerprint {model.get('fingerprint', 'not known')}"]
    scores = [f"  {one['made_of']}  {one['hash']}  {one['state']}" for one in facts["scores"]]
    lines += list(dict.fromkeys(scores))
    lines += [f"  {name} {value:.4g}" for name, value in facts["metrics"].items()]
    lines += [f"  dagster   {name}: {run}" for name, run in runs["dagster"].items()]
    if runs["mlflow"]:
        lines.append(f"  mlflow    {runs['mlflow']['run_id']}  {runs['mlflow']['link']}")
    code = facts["code"][own["name"]]
    packages = ", ".join(f"{name} {version}" for name, version in code["packages"].items())
    lines.append(f"  code      delift {code['delift']}, commit {code['git_commit']}, {packages}")
    lines += [f"  note      {note}" for note in facts["notes"]]
    picks = []
    for row in records or ():
        gain = "" if row["gain"] is None else f", gain {row['gain']:.4g}"
        out = f", left out: {row['left_out']}" if row["left_out"] else ""
        picks.append(f"    {row['record_id']}  rank {row['rank']} in {row['adapter']}{gain}{out}")
    return "\n".join(lines + _first_lines(picks))


def _first_lines(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return lines[:MOST_LINES] + ([f"    and {more:,} more (--json lists all)"] if more > 0 else [])


def _record_text(facts: dict[str, Any]) -> str:
    texts = facts["texts"]
    prompt = " ".join(filter(None, (texts["instruction"], texts["input"])))
    # JSON keeps each text on one line and escapes the control characters of a terminal.
    prompt, answer = (json.dumps(text[:120]) for text in (prompt, texts["output"]))
    lines = [facts["record_id"], f"  {prompt} -> {answer}"]
    lines += [
        f"  {place['part']} of {place['version']} as {', '.join(place['source_ids'])}"
        for place in facts["versions"]
    ]
    lines += [f"  not scored in {v}: {why}" for v, why in facts["unscorable"].items()]
    lines += [f"  {one['version']}/{one['arm']}: {one['reason']}" for one in facts["subsets"]]
    for one in facts["adapters"]:
        used = f"trained on it, through {one['through']}" if one["through"] else "trained on it"
        used = f"not trained on it: {one['left_out']}" if one["left_out"] else used
        lines.append(f"  {one['adapter']} was {used}")
    lines += [
        f"  {one['version']}/{one['arm']} measured "
        + ", ".join(f"{k} {v:.4g}" for k, v in one["metrics"].items() if not k.endswith("_se"))
        for one in facts["reports"]
    ]
    lines += [f"  held out, measured: {json.dumps(one)}" for one in facts["measured"]]
    return "\n".join(lines)


def _version_text(facts: dict[str, Any]) -> str:
    children = ", ".join(facts["children"]) or "none"
    lines = [
        f"{facts['version']} of {facts['dataset']}  {facts['content_hash']}; "
        f"{facts['counts']['pool']:,} records; followed by {children}"
    ]
    for one in facts["parents"]:
        counts = [f"{len(one[kind]):,} {kind}" for kind in ("added", "removed", "changed")]
        counts.append(f"{one['unchanged']:,} unchanged")
        lines.append(f"  against {one['version']}: {', '.join(counts)}")
    for one in facts["subsets"]:
        moved = f"{one['selected']:,} picks"
        if one["against"] is None:
            moved += f"; {one['parent']} has no subset to compare with"
        else:
            moved = f"{one['kept']:,} of {moved} were in {one['parent']}/{one['against']}; "
            moved += f"{len(one['came']):,} are new, {len(one['went']):,} are gone"
        lines.append(f"  {one['arm']}: {moved}")
        moves = [f"    + {row['record_id']}  {row['why']}" for row in one["came"]]
        moves += [f"    - {row['record_id']}  {row['why']}" for row in one["went"]]
        lines += _first_lines(moves)
    return "\n".join(lines)


@shared.with_model_flags
def explain(
    record: str = Option(
        ...,
        help="The record: its record_id, the beginning of its record_id, or its id in the file.",
    ),
    version: str | None = Option(None, help="The dataset version."),
    arm: str | None = Option(None, help="The arm, e.g. instruction_tuning.delift_trusted."),
    why: Path | None = Option(
        None,
        help="The file of reasons that `delift select --why` wrote. Give --why, or "
        "--version and --arm.",
    ),
    model: str | None = Option(
        None,
        help="Use this model to show how each neighbour changes the probabilities of the "
        "answer tokens. Needs --version and --arm.",
    ),
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Show why a record was chosen or dropped.

    Also show how far its answer can be believed, and why.

    Example: delift explain --why reasons.jsonl --record ID
    """
    from delift_pipeline.stages import explain as stage

    options = None if model is None else flags.options_for(Home.at(home), version, model)
    if why is not None and version is None and arm is None and options is None:
        explanation = stage.explain_file(why, record)
    elif why is None and version is not None and arm is not None:
        explanation = stage.explain(Home.at(home), version, arm, record, options)
    else:
        reason = "pass --version and --arm of a stored subset, or --why FILE that select wrote"
        raise InputError(f"{reason} (--model needs --version and --arm)")
    shared.print_result(as_json, asdict(explanation), explanation_text(explanation))


def explanation_text(explanation: "Explanation") -> str:
    """Return the explanation for people."""
    record = explanation.record
    text = record.get("text")  # Only a file of reasons has this one text of the record.
    if text is None:
        prompt = " ".join(filter(None, (record["instruction"], record["input"])))
        text = f"{prompt} -> {record['output']}"
    names = f"{', '.join(record['source_ids'])} ({explanation.record_id})"
    lines = [f"{names} under {explanation.arm} on {explanation.version}", f"  {text}"]
    lines += _choice_lines(explanation)
    lines += _record_lines("near duplicates", explanation.near_duplicates)
    lines += [*_trust_lines(explanation.evidence), *_token_lines(explanation.tokens)]
    return "\n".join(lines)


def _choice_lines(explanation: "Explanation") -> list[str]:
    if not explanation.selected:
        if explanation.unscorable is not None:
            return [f"dropped; it cannot be scored: {explanation.unscorable}"]
        if explanation.covered_by is None:
            return ["dropped; no chosen record covers it"]
        by = explanation.covered_by
        return [
            f"dropped; covered to {explanation.coverage:.3f} by {by['source_id']}: {by['text']}"
        ]
    gain = "" if explanation.gain is None else f", gain {explanation.gain:.4f}"
    own = (
        ""
        if explanation.self_share is None
        else f", {explanation.self_share:.0%} of it from its own row"
    )
    kind = "replayed" if explanation.replayed else "chosen"
    return [
        f"{kind} at rank {explanation.rank}{gain}{own}",
        *_record_lines("covers", explanation.covers),
    ]


def _record_lines(title: str, records: list[dict[str, str]]) -> list[str]:
    if not records:
        return []
    lines = [f"{title} {len(records):,}:"]
    lines += [f"  {one['source_id']}: {one['text']}" for one in records[:MOST_LINES]]
    return lines + (["  ..."] if len(records) > MOST_LINES else [])


def _trust_lines(evidence: dict[str, Any] | None) -> list[str]:
    if evidence is None:
        return ["trust: not known, because the record was not scored"]
    verdict = "SUSPECTED WRONG" if evidence["suspected"] else "not suspected"
    relative, support = evidence.get("relative") or 0.0, evidence.get("support")
    why = "" if support is None else f": support {support:+.2f} nats"
    if relative < 0 and evidence["trust"] == 1:
        why = f": its nearest prompts are too far to be believed (weight {evidence['weight']:.3f})"
    elif (agreement := evidence.get("agreement")) is not None:
        agreed = f"near prompts agree {agreement:+.3f}"
        why = f"{why}: {agreed}, {relative:+.3f} against its surroundings"
    lines = [f"trust {evidence['trust']:.3f} ({verdict}){why}"]
    for one in evidence["neighbours"]:
        verb = "disagrees" if one["disagrees"] else "agrees"
        if one["helps"] is None and one["helped"] is None:
            verb = "is near"
        helped, helps = _format_utility(one["helps"]), _format_utility(one["helped"])
        lines.append(
            f"  {one['source_id']} {verb} (prompt cosine {one['similarity']:.2f}, helped by this "
            f"record {helped}, helps it {helps}): {one['text']}"
        )
    return lines


def _token_lines(tokens: list[dict[str, Any]]) -> list[str]:
    if not tokens:
        return []
    lines = [
        "log-probability of the answer's tokens, alone and its change after a neighbour (nats):"
    ]
    for one in tokens:
        values = zip(one["tokens"], one["alone"], one["change"], strict=True)
        changes = "  ".join(f"{t!r} {a:.3f} {c:+.3f}" for t, a, c in values)
        lines.append(f"  after {one['source_id']} ({sum(one['change']):+.3f} in all): {changes}")
    return lines


def _format_utility(value: float | None) -> str:
    return "not scored" if value is None else f"{value:+.3f}"
