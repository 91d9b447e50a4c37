"""`delift explain`: why a record was chosen, or who stands for it, or why it is not trusted."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    print_json,
)
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.steps.explain import Explanation

SHOWN = 10


@takes_model
def explain(
    version: Annotated[str, typer.Option(help="The dataset version.")],
    arm: Annotated[str, typer.Option(help="The arm, e.g. instruction_tuning.delift_trusted.")],
    record: Annotated[
        str, typer.Option(help="The record: record_id, its beginning, or the file's own id.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Also show each answer token's change after the neighbours, by a model."),
    ] = None,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a record was chosen or dropped, and what its nearest prompts say of its answer."""
    from delift_pipeline.steps.explain import explain as explained

    options = None if model is None else flags.options(model)
    found = explained(Home.at(home), version, arm, record, options)
    if as_json:
        print_json(found.as_json())
    else:
        print(as_text(found))


def as_text(found: "Explanation") -> str:
    """The explanation for people."""
    record = found.record
    prompt = " ".join(part for part in (record["instruction"], record["input"]) if part)
    lines = [
        f"{found.record_id} ({', '.join(record['source_ids'])}) under {found.arm} on "
        f"{found.version}",
        f"  {prompt} -> {record['output']}",
        *_place(found),
        *_listed("near duplicates", found.near_duplicates),
        *_trust(found.evidence),
        *_tokens(found.tokens),
    ]
    return "\n".join(lines)


def _place(found: "Explanation") -> list[str]:
    if not found.selected:
        if found.covered_by is None:
            return ["dropped; no chosen record covers it"]
        by = found.covered_by
        return [f"dropped; covered {found.coverage:.3f} by {by['record_id']}: {by['text']}"]
    gain = "" if found.gain is None else f", gain {found.gain:.4f}"
    own = "" if found.self_share is None else f", {found.self_share:.0%} of it its own row"
    kind = "replayed" if found.replayed else "chosen"
    return [f"{kind} at rank {found.rank}{gain}{own}", *_listed("covers", found.covers)]


def _listed(title: str, records: list[dict[str, str]]) -> list[str]:
    if not records:
        return []
    lines = [f"{title} {len(records):,}:"]
    lines += [f"  {one['record_id']}: {one['text']}" for one in records[:SHOWN]]
    return lines + (["  ..."] if len(records) > SHOWN else [])


def _trust(evidence: dict[str, Any] | None) -> list[str]:
    if evidence is None:
        return ["trust: not known, no near pairs were scored"]
    said = "SUSPECTED WRONG" if evidence["suspected"] else "not suspected"
    lines = [
        f"trust {evidence['trust']:.3f} ({said}): near prompts agree {evidence['agreement']:+.3f}, "
        f"{evidence['relative']:+.3f} against its surroundings"
    ]
    for one in evidence["neighbours"]:
        verb = "disagrees" if one["disagrees"] else "agrees"
        lines.append(
            f"  {one['record_id']} {verb} (prompt cosine {one['similarity']:.2f}, helped by this "
            f"record {_signed(one['helps'])}, helps it {_signed(one['helped'])}): {one['text']}"
        )
    return lines


def _tokens(tokens: list[dict[str, Any]]) -> list[str]:
    lines = ["log-probability of the answer's tokens, change after each neighbour (nats):"]
    for one in tokens:
        pairs = zip(one["tokens"], one["change"], strict=True)
        lines.append(f"  {one['record_id']}: " + " ".join(f"{t!r} {c:+.3f}" for t, c in pairs))
    return lines if tokens else []


def _signed(value: float | None) -> str:
    return "not scored" if value is None else f"{value:+.3f}"
