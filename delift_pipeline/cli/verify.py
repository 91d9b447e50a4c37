"""`delift verify`: are stored scores still as they were written?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from delift_pipeline.cli.options import HomeOption, JsonOption, print_json
from delift_pipeline.storage.home import FINGERPRINT_PATTERN, Home


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set bad shards aside, so that they are scored again.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of every score shard; exit status 1 where a damaged one is left."""
    found = _stores(Home.at(home), repair)
    bad = [shard for store in found for shard in store["bad"]]
    if as_json:
        print_json({"stores": found, "bad": len(bad), "repaired": repair and bool(bad)})
    else:
        for line in _lines(found, repair):
            print(line)
    if bad and not repair:
        raise typer.Exit(1)


def _stores(home: Home, repair: bool) -> list[dict[str, Any]]:
    folder = home.root / "scores"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [_checked(folder / n, repair) for n in names if FINGERPRINT_PATTERN.fullmatch(n)]


def _checked(folder: Path, repair: bool) -> dict[str, Any]:
    from delift_pipeline.errors import DeliftError
    from delift_pipeline.scoring.index import shard_names
    from delift_pipeline.scoring.store import ScoreStore
    from delift_pipeline.storage.manifest import read_manifest

    store = ScoreStore(folder)
    shards, bad, problem = len(shard_names(store.index.folder)), store.verify(), ""
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            problem = "it has no manifest"
        elif manifest.content_hash != folder.name:
            problem = f"its manifest is that of {manifest.content_hash}"
    except DeliftError as error:
        problem = str(error)
    for shard in bad if repair else []:
        store.set_aside(shard.name)
    return {
        "fingerprint": folder.name,
        "shards": shards,
        "manifest": problem or None,
        "bad": [{"shard": shard.name, "reason": shard.reason} for shard in bad],
    }


def _lines(stores: list[dict[str, Any]], repair: bool) -> list[str]:
    lines = []
    for store in stores:
        name = store["fingerprint"]
        lines.append(f"{name}: {store['shards']:,} shards, {len(store['bad'])} damaged")
        if store["manifest"]:
            lines.append(f"{name}: {store['manifest']}")
        done = "; set aside, its pairs are scored again" if repair else ""
        lines += [f"{name}/{bad['shard']}: {bad['reason']}{done}" for bad in store["bad"]]
    if any(store["bad"] for store in stores) and not repair:
        lines.append("delift verify --repair sets damaged shards aside")
    return lines or ["no scores are stored here"]
