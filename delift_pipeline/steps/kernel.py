"""The step behind `utility_kernel`: scores become utilities, block by block."""

from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.plots import heat_map_png
from delift_pipeline.progress import Progress, SilentProgress
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.plan import neighbour_block, read_neighbours, read_plan
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.steps.outcome import Check, Outcome, kept_plot
from delift_pipeline.steps.score import scored_manifest
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.utility.columns import cell_means
from delift_pipeline.utility.kernel import build_kernel, load_block

CODE_VERSION = "1"


def make_kernel(
    home: Home,
    version: str,
    model: ModelOptions,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Build the version's kernel from the stored scores, unless it stands already.

    Raises:
        DeliftError: the plan or scores are missing.
    """
    fingerprint = fingerprint_of(model).digest
    plan_manifest = read_manifest(home.plan(version))
    if plan_manifest is None:
        raise DeliftError(f"{version} has no pair plan yet: materialise pair_plan first")
    scored = scored_manifest(home, version, fingerprint)
    request: dict[str, Any] = {"fingerprint": fingerprint}
    parents = {
        f"plan:{version}": plan_manifest.content_hash,
        f"scores:{version}": scored.content_hash,
    }
    folder = home.kernel(version, fingerprint)
    stored = up_to_date(folder, request, parents, CODE_VERSION)
    manifest = stored or build_kernel(
        home,
        version,
        fingerprint,
        ScoreStore(home.scores(fingerprint)),
        plan := read_plan(home.plan(version)),
        unscorable=scored.details["unscorable"],
        neighbours=_near(home, version, plan),
        parents=parents,
        request=request,
        code_version=CODE_VERSION,
        run_id=run_id,
        progress=progress or SilentProgress(),
    )
    return _outcome(home, version, fingerprint, manifest, stored is not None)


def _near(home: Home, version: str, plan: PairPlan) -> PairBlock | None:
    """Near pairs as a block of their own, where the plan holds every pair."""
    own, neighbours = plan.block("self"), read_neighbours(home.plan(version))
    if own is None or not own.dense or neighbours is None:
        return None
    return neighbour_block(own.targets, neighbours)


def _outcome(
    home: Home, version: str, fingerprint: str, manifest: Manifest, reused: bool
) -> Outcome:
    folder = home.kernel(version, fingerprint)
    blocks = manifest.details["blocks"]
    name = "self" if "self" in blocks and blocks["self"]["form"] == "dense" else "neighbours"
    table = pl.DataFrame(
        [
            {"block": block, **{k: v for k, v in entry.items() if k != "hash"}}
            for block, entry in blocks.items()
        ]
    )

    def draw() -> bytes:
        block = load_block(home, version, fingerprint, name)
        return heat_map_png(cell_means(block.matrix), block.name)

    return Outcome(
        manifest=manifest,
        path=folder.relative_to(home.root).as_posix(),
        reused=reused,
        facts=dict(manifest.counts),
        plots={"utilities": kept_plot(folder / "utilities.png", draw)},
        tables={"blocks": table},
        checks=_checks(home, version, manifest),
    )


def _checks(home: Home, version: str, manifest: Manifest) -> dict[str, Check]:
    blocks, plan = manifest.details["blocks"], read_plan(home.plan(version))
    left_out = set(manifest.details["unscorable"])
    wrong = [
        block.name
        for block in plan.blocks
        if blocks[block.name]["rows"] != len([r for r in block.targets if r not in left_out])
        or blocks[block.name]["columns"]
        != len([r for r in block.demonstrations if r not in left_out])
        or not _in_range(blocks[block.name])
    ]
    own = blocks["self"]
    share = own["share_positive"] or 0.0
    return {
        "shape": Check(
            not wrong,
            f"wrong shape or utilities outside [-1, 1]: {', '.join(wrong) or 'none'}",
        ),
        "positive": Check(
            share > 0,
            f"{share:.1%} of the pool's utilities are above 0",
            {"share_positive": share},
        ),
    }


def _in_range(entry: dict[str, Any]) -> bool:
    """Whether a block's utilities lie in [-1, 1]; a block without pairs has none."""
    low, high = entry["low"], entry["high"]
    return entry["pairs"] == 0 or -1 <= low <= high <= 1
