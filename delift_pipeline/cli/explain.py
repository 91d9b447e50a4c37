"""`delift explain`: why a record was chosen, or who stands for it, or why it is not trusted."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home

if TYPE_CHECKING:
    from delift_pipeline.stages.explain import Explanation

SHOWN = 10


@shared.takes_model
def explain(
    record: str = Option(..., help="The record: record_id, its beginning, or the file's own id."),
    version: str | None = Option(None, help="The dataset version."),
    arm: str | None = Option(None, help="The arm, e.g. instruction_tuning.delift_trusted."),
    why: Path | None = Option(
        None, help="The reasons that select wrote, in place of a version and an arm."
    ),
    model: str | None = Option(
        None, help="Also show each answer token's change after the neighbours, by a model."
    ),
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Say why a record was chosen or dropped, and what its nearest prompts say of its answer."""
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
