"""Ingest files as an immutable dataset version."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import replace_folder, write_parquet
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.hashing import digest_json, digest_text
from delift_pipeline.core.home import Home, check_version, portable_model_name
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.records.extra_columns import extra_columns_hash, read_extra_columns
from delift_pipeline.records.left_out import FAULTS_FILE, drop_forgotten, write_faults
from delift_pipeline.records.read import Ids, Inputs, RecordsFile, read_parts
from delift_pipeline.records.schema import content_hash
from delift_pipeline.records.stored import PARTS, load_version, pool_ids, version_manifest

COVERAGES = ("auto", "neighbours", "all")
EXISTING = ("subset", "pool")
DATASET_CODE_VERSION = "1"
EXTRA_COLUMNS = "columns"
HELDOUT_SHARE = 0.1
HELDOUT_SEED = 0
MOST_IDS = 20
_SET_NAMES = {"pool": "the pool", "target": "the target set", "heldout": "the held-out set"}


def ingest(
    home: Home,
    file: Inputs,
    *,
    version: str,
    parents: Sequence[str] = (),
    target: Inputs | None = None,
    heldout: Inputs | None = None,
    dataset: str | None = None,
    skip_bad: bool = False,
    mapping: Mapping[str, str] | None = None,
    coverage: str = "auto",
    existing: str = "subset",
    model: str | None = None,
    template: str | None = None,
    model_template: str | None = None,
    keep: Sequence[str] = (),
    ids: Ids = "keep",
    say: Callable[[str], None] | None = None,
) -> Manifest:
    """Store a file, with its target and held-out sets, as a new version.

    Without a held-out file, the version has its first parent's held-out set. Without parents, a
    tenth of the pool becomes the held-out set, drawn with a seed. Records of such a set that occur
    again in a later pool are left out of it and counted. Forgotten records (`delift forget`) are
    left out of every file and counted.

    Args:
        home: The home that stores it, in `datasets/<version>`.
        file: The pool: a file, a folder of files, or several.
        version: Its permanent name. Storing the same version again does nothing.
        parents: The stored versions that it continues.
        target: The target set.
        heldout: The held-out set.
        dataset: The name of its dataset. The default is the first parent's dataset, or else the
            version's name up to its last `-`.
        skip_bad: Whether to leave faulty rows out of all files, count them and list their faults
            in the version's `faults.jsonl`.
        mapping: The column mapping of all files (see `read_records`).
        coverage: Which pairs to score: `auto`, `neighbours` or `all`.
        existing: The existing records of continual selection: the parents' `subset` or `pool`.
        model: The scorer model, if the version has its own (see `portable_model_name`).
        template: The prompt template, if the user named one for the version.
        model_template: The template that the model gets where `template` is None, so that the
            version keeps it. It is no part of the request.
        keep: Extra columns of the pool's file to store as text, for balance reports and quotas.
        ids: `ignore` drops the source ids of the files.
        say: A function that is called with each note about how the files were read.

    Returns:
        The manifest. Its content hash depends on the records, not on their order or copies.

    Raises:
        InputError: Names, options or files have faults. All are listed, and nothing is written.
    """
    settings = {"coverage": coverage, "existing": existing, "model": model, "template": template}
    inputs = {"pool": file, "target": target, "heldout": heldout}
    read_files, faults = read_parts(inputs, mapping=mapping, skip_bad=skip_bad, ids=ids)
    if faults := _name_faults(home, version, parents, settings) + faults:
        raise InputError(*faults)
    if say is not None:
        for note in dict.fromkeys(note for part in read_files.values() for note in part.notes):
            say(note)
    files, forgotten = drop_forgotten(home, read_files)
    frames, details = _build_sets(home, files, parents)
    known = {name: version_manifest(home, name) for name in home.versions()}
    if not dataset and parents:
        dataset = known[parents[0]].details["dataset"]
    request: dict[str, Any] = {
        "dataset": dataset or version.rpartition("-")[0] or version,
        "version": version,
        "parents": list(parents),
        **settings,
    }
    if model is not None:
        request["model"] = portable_model_name(home, model)
    counts = {part: frames[part].height if part in frames else 0 for part in PARTS}
    for name in ("read", "folded", "left_out"):
        counts[name] = sum(getattr(part, name) for part in files.values())
    counts["withheld"] = files["pool"].frame.height - counts["pool"] if parents else 0
    parent_ids = pool_ids(home, parents).implode()
    counts["new"] = int((~frames["pool"]["record_id"].is_in(parent_ids)).sum())
    if forgotten:
        counts["forgotten"] = forgotten
    if columns := sorted(set(keep)):
        request["keep"] = columns
        frames[EXTRA_COLUMNS] = read_extra_columns(frames["pool"], files["pool"], columns)
        details[f"{EXTRA_COLUMNS}_hash"] = extra_columns_hash(frames[EXTRA_COLUMNS])
    digest = version_hash(details)
    others = {name: other for name, other in known.items() if name != version}
    if same := [(m.created, name) for name, m in others.items() if m.content_hash == digest]:
        details["same_as"] = min(same)[1]  # the first version with the same records and roles
    manifest = Manifest(
        kind="dataset",
        content_hash=digest,
        parents={f"dataset:{name}": known[name].content_hash for name in parents},
        counts=counts,
        details={
            **request,
            "template": template or model_template,
            "shape": files["pool"].shape,
            "left_out": counts["left_out"],
            **details,
        },
        request=request,
        code_version=DATASET_CODE_VERSION,
    )
    return _store_version(
        home, manifest, frames, [fault for part in files.values() for fault in part.faults]
    )


def version_hash(details: Mapping[str, Any]) -> str:
    """Return a version's content hash, from the hashes of its sets in the manifest's details."""
    extra = (EXTRA_COLUMNS,) if f"{EXTRA_COLUMNS}_hash" in details else ()
    return digest_json({part: details[f"{part}_hash"] for part in (*PARTS, *extra)})


def _build_sets(
    home: Home, files: Mapping[str, RecordsFile], parents: Sequence[str]
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Find the held-out set and check that no two sets share a record.

    See `ingest` for the held-out set.

    Returns:
        The sets by name (`pool`, `heldout` and, if there is one, `target`), and details for the
        manifest: the content hash of each set, and where the held-out set comes from.

    Raises:
        InputError: Two sets share records (their ids are listed), or nothing is left of the pool.
    """
    versions = [load_version(home, name) for name in parents]
    frames = {part: file.frame for part, file in files.items()}
    pool, derived = frames["pool"], files["pool"].derived
    details: dict[str, Any] = dict.fromkeys(f"{part}_hash" for part in PARTS)
    for part in files.keys() - {"pool"}:
        details[f"{part}_hash"] = content_hash(frames[part], files[part].derived)
    if "heldout" not in files and versions:
        parent_details, frames["heldout"] = versions[0].manifest.details, versions[0].heldout
        details |= {"heldout_hash": parent_details["heldout_hash"], "heldout_from": parents[0]}
        if "heldout_set_aside" in parent_details:
            details["heldout_set_aside"] = parent_details["heldout_set_aside"]
            frames["pool"] = pool.join(
                frames["heldout"], on="record_id", how="anti", maintain_order="left"
            )
    elif "heldout" not in files:
        frames["pool"], frames["heldout"], details["heldout_set_aside"] = _split_heldout(pool)
        details["heldout_hash"] = content_hash(frames["heldout"], derived)
    details["pool_hash"] = content_hash(frames["pool"], derived)
    faults = list(_overlap_faults(frames, {one.version: one.pool for one in versions}))
    if frames["pool"].is_empty():
        reason = "Every record is in the parent's held-out set. Give other records."
        faults.append(Fault(reason, field="pool"))
    if faults:
        raise InputError(*faults)
    return frames, details


def _split_heldout(pool: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Split a held-out set off a pool of at least two records.

    The records with the smallest seeded digests are held out, so the choice depends on the records
    and never on their order.

    Returns:
        The remaining pool and the held-out set, both in file order, and details for the manifest.
    """
    if pool.height < 2:
        reason = "One record cannot be both pool and held-out set. Give a held-out file."
        raise InputError(reason, field="heldout")
    rows = max(1, int(HELDOUT_SHARE * pool.height + 0.5))
    prefix = f"heldout:{HELDOUT_SEED}"
    by_digest = sorted(pool["record_id"], key=lambda record: digest_text(prefix, record))
    in_heldout = pl.col("record_id").is_in(by_digest[:rows])
    details = {"share": HELDOUT_SHARE, "seed": HELDOUT_SEED, "rows": rows}
    return pool.filter(~in_heldout), pool.filter(in_heldout), details


def _overlap_faults(
    frames: Mapping[str, pl.DataFrame], parent_pools: Mapping[str, pl.DataFrame]
) -> Iterator[Fault]:
    """Yield a fault for each two sets that share records. Pools may share records with parents."""
    sets = {_SET_NAMES[part]: frame for part, frame in frames.items()}
    parent_sets = {f"the pool of {version}": pool for version, pool in parent_pools.items()}
    pairs = [("the pool", "target"), ("the pool", "heldout"), ("the target set", "heldout")]
    for left, part in [*pairs, *((name, "heldout") for name in parent_sets)]:
        frame, other = (sets | parent_sets).get(left), frames.get(part)
        if frame is None or other is None:
            continue
        shared = frame.join(other.select("record_id"), on="record_id", how="semi")
        if shared.is_empty():
            continue
        first = shared.select("record_id", "source_ids").head(MOST_IDS).iter_rows()
        names = ", ".join(f"{ids[0]} ({record})" for record, ids in first)
        more = ", ..." if shared.height > MOST_IDS else ""
        right = _SET_NAMES[part]
        reason = f"{shared.height} records are both in {left} and in {right}: {names}{more}"
        yield Fault(reason, field=part)


def _name_faults(
    home: Home, version: str, parents: Sequence[str], settings: Mapping[str, Any]
) -> list[Fault]:
    faults = list[Fault]()
    for name in dict.fromkeys((version, *parents)):
        try:
            check_version(name)
            if name in parents and name != version:
                version_manifest(home, name)
        except InputError as refused:
            field = "parent" if name in parents else "version"
            faults += [Fault(fault.reason, field=field) for fault in refused.faults]
    if version in parents:
        faults.append(Fault(f"{version!r} cannot be its own parent", field="parent"))
    twice = sorted(name for name, times in Counter(parents).items() if times > 1)
    faults += [Fault(f"{name!r} is named twice. Name it once.", field="parent") for name in twice]
    for option, known in (("coverage", COVERAGES), ("existing", EXISTING)):
        if settings[option] not in known:
            reason = f"{settings[option]!r} is unknown. Use one of: {', '.join(known)}."
            faults.append(Fault(reason, field=option))
    return faults


def _store_version(
    home: Home, manifest: Manifest, frames: Mapping[str, pl.DataFrame], skipped: Sequence[Fault]
) -> Manifest:
    """Write a version's folder at once, unless the same version is stored already."""
    version = manifest.details["version"]
    home.datasets.mkdir(parents=True, exist_ok=True)
    with FileLock(home.datasets / f".{version}.lock"):
        stored = read_manifest(home.dataset(version))
        if stored is not None:
            old, new = ({"records": m.content_hash, **m.request} for m in (stored, manifest))
            if different := [name for name in old | new if old.get(name) != new.get(name)]:
                reason = (
                    f"version {version!r} is stored with other {', '.join(different)}, and a "
                    "version never changes. Choose another name."
                )
                raise InputError(reason, field="version")
            return stored
        with replace_folder(home.dataset(version)) as folder:
            for part, frame in frames.items():
                write_parquet(folder / f"{part}.parquet", frame)
            if skipped:
                write_faults(folder / FAULTS_FILE, skipped)
            manifest.write(folder)
    return manifest
