"""Every artifact of a home by its name, and what each was made of: read from manifests alone.

An artifact's name is what manifests call it in their `parents`:

    dataset:V  heldout:V  plan:V  scores:V  kernel:V:BLOCK
    subset:V:ARM  adapter:V:ARM  report:V:ARM
    model                         (its hash is the fingerprint of the base model)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.storage.home import ARM_PATTERN, FINGERPRINT_PATTERN, NAME_PATTERN, Home
from delift_pipeline.storage.manifest import Manifest, read_manifest
from delift_pipeline.utility.kernel import block_hashes

ARM_KINDS = {"subset": "subsets", "adapter": "adapters", "report": "reports"}
AS_RECORDED, CHANGED, GONE = "as recorded", "changed since", "gone"


@dataclass(frozen=True)
class Artifact:
    """One stored artifact.

    Attributes:
        name: `kind:version[:arm]`.
        folder: Where it lies.
        manifest: Its manifest.
    """

    name: str
    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        """The first part of the name."""
        return self.name.split(":", 1)[0]

    @property
    def version(self) -> str | None:
        """The dataset version it belongs to, if any."""
        return version_of(self.name)

    @property
    def arm(self) -> str | None:
        """The arm it belongs to, if any."""
        return arm_of(self.name)


@dataclass(frozen=True)
class Cause:
    """One edge of the lineage: an artifact, and something it was made of.

    Attributes:
        child: The artifact.
        parent: What it was made of, by name.
        recorded: The parent's hash when the child was made.
        stored: The parent as it is stored now, or None.
        state: `as recorded`, `changed since` (stored with another hash) or `gone`.
    """

    child: str
    parent: str
    recorded: str
    stored: Artifact | None
    state: str

    def as_json(self, root: Path) -> dict[str, str | None]:
        """The edge as plain data, its path relative to the home."""
        return {
            "artifact": self.child,
            "made_of": self.parent,
            "hash": self.recorded,
            "state": self.state,
            "path": self.stored.folder.relative_to(root).as_posix() if self.stored else None,
        }


def version_of(name: str) -> str | None:
    """The version in an artifact's name."""
    parts = name.split(":")
    return parts[1] if len(parts) > 1 else None


def arm_of(name: str) -> str | None:
    """The arm in an artifact's name."""
    parts = name.split(":")
    return parts[2] if len(parts) > 2 and parts[0] in ARM_KINDS else None


def found(home: Home, name: str, fingerprint: str | None = None) -> Artifact | None:
    """The stored artifact of a name, or None.

    Args:
        home: The home.
        name: See the module.
        fingerprint: Of the artifact that names it; kernels and scores lie under it, and it is the
            hash of `model`.

    Raises:
        DeliftError: its manifest is damaged.
    """
    folder = _folder(home, name, fingerprint)
    manifest = read_manifest(folder) if folder else None
    return Artifact(name, folder, manifest) if folder and manifest else None


def _folder(home: Home, name: str, fingerprint: str | None) -> Path | None:
    kind, _, rest = name.partition(":")
    version, _, last = rest.partition(":")
    if kind in ARM_KINDS:
        return home.root / ARM_KINDS[kind] / version / last
    if kind in ("dataset", "heldout"):
        return home.dataset(version)
    if kind == "plan":
        return home.plan(version)
    if fingerprint is None:
        return None
    if kind == "kernel":
        return home.kernel(version, fingerprint)
    scores = home.scores(fingerprint)
    return scores if kind == "model" else scores / "versions" / version / "in_context"


def current_hash(artifact: Artifact) -> str | None:
    """The stored artifact's hash as its children record it (a kernel's by block)."""
    kind, manifest = artifact.kind, artifact.manifest
    if kind != "kernel":
        return manifest.content_hash
    return block_hashes(manifest).get(artifact.name.split(":", 2)[2])


def causes(home: Home, artifact: Artifact) -> list[Cause]:
    """Everything an artifact was made of, nearest first, each edge once.

    The walk goes through what is stored now; where a parent was made again since, that is said in
    its `state`, and its own causes are those of what is stored.
    """
    edges: list[Cause] = []
    queue, seen = [artifact], {artifact.name}
    while queue:
        child = queue.pop(0)
        for edge in direct_causes(home, child):
            edges.append(edge)
            if edge.stored is not None and edge.parent not in seen:
                seen.add(edge.parent)
                queue.append(edge.stored)
    return edges


def direct_causes(home: Home, child: Artifact) -> Iterator[Cause]:
    """What one artifact was made of, as its manifest records it."""
    own = child.manifest
    for parent, recorded in own.parents.items():
        fingerprint = recorded if parent == "model" else own.fingerprint
        stored = found(home, _named(parent, child), fingerprint)
        yield Cause(child.name, parent, recorded, stored, _state(stored, recorded))


def _named(parent: str, child: Artifact) -> str:
    """A parent's full name: the base model's report names its held-out set without the version."""
    return f"heldout:{child.version}" if parent == "heldout" else parent


def _state(stored: Artifact | None, recorded: str) -> str:
    if stored is None:
        return GONE
    # A held-out set is recorded by the digest of the rows that were measured, a version by its own.
    same = stored.kind == "heldout" or current_hash(stored) == recorded
    return AS_RECORDED if same else CHANGED


def arm_artifacts(home: Home, kind: str, version: str) -> Iterator[Artifact]:
    """The stored subsets, adapters or reports of one version, by arm."""
    root = home.root / ARM_KINDS[kind] / version
    for arm in folders(root):
        if ARM_PATTERN.fullmatch(arm.name):
            manifest = read_manifest(arm)
            if manifest is not None:
                yield Artifact(f"{kind}:{version}:{arm.name}", arm, manifest)


def all_artifacts(home: Home) -> Iterator[Artifact]:
    """Every artifact with a manifest: datasets, plans, kernels, subsets, adapters, reports."""
    for version in home.versions():
        for name in (f"dataset:{version}", f"plan:{version}"):
            artifact = found(home, name)
            if artifact is not None:
                yield artifact
        yield from version_kernels(home, version)
        yield from version_scores(home, version)
        for kind in ARM_KINDS:
            yield from arm_artifacts(home, kind, version)


def version_kernels(home: Home, version: str) -> Iterator[Artifact]:
    """A version's kernels, one for each fingerprint."""
    for folder in folders(home.root / "kernels" / version):
        manifest = read_manifest(folder) if FINGERPRINT_PATTERN.fullmatch(folder.name) else None
        if manifest is not None:
            yield Artifact(f"kernel:{version}", folder, manifest)


def version_scores(home: Home, version: str) -> Iterator[Artifact]:
    """What was scored for a version, one for each fingerprint and part."""
    for store in folders(home.root / "scores"):
        for folder in folders(store / "versions" / version):
            manifest = read_manifest(folder)
            if manifest is not None:
                yield Artifact(f"scores:{version}", folder, manifest)


def folders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, temporary and hidden ones left out."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if not p.name.startswith(".") and p.is_dir())


def stored_versions(home: Home, kind: str) -> list[str]:
    """Versions with a folder of one kind of artifact, even where the data set is gone."""
    names = (folder.name for folder in folders(home.root / ARM_KINDS[kind]))
    return [name for name in names if NAME_PATTERN.fullmatch(name)]
