"""Every artifact of a home by its name, and its parents. Only manifests are read.

An artifact's name is the key that manifests use in their `parents`:

    dataset:V  heldout:V  plan:V  scores:V  baseline:V  kernel:V:BLOCK
    subset:V:ARM  adapter:V:ARM  report:V:ARM
    model                         (its hash is the fingerprint of the base model)

A subset has the parent `baseline:V` if its selector reads support.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.home import ARM_PATTERN, FINGERPRINT_PATTERN, NAME_PATTERN, Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.evaluation.result import REPORT
from delift_pipeline.kernel.kernel import block_hashes

ARM_KINDS = {"subset": "subsets", "adapter": "adapters", "report": "reports"}


@dataclass(frozen=True)
class Artifact:
    """One stored artifact.

    Attributes:
        name: `kind:version[:arm]`.
    """

    name: str
    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        """The first part of the name."""
        return self.name.split(":")[0]

    @property
    def version(self) -> str | None:
        """The dataset version it belongs to, if any."""
        return (*self.name.split(":"), None)[1]

    @property
    def arm(self) -> str | None:
        """The arm it belongs to, if any."""
        return self.name.split(":")[2] if self.kind in ARM_KINDS else None


@dataclass(frozen=True)
class Cause:
    """One edge of the lineage: an artifact and one of its parents.

    Attributes:
        parent: The parent's name.
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
        """Return the edge as plain data, with the path relative to the home."""
        return {
            "artifact": self.child,
            "made_of": self.parent,
            "hash": self.recorded,
            "state": self.state,
            "path": self.stored.folder.relative_to(root).as_posix() if self.stored else None,
        }


def find_artifact(home: Home, name: str, fingerprint: str | None = None) -> Artifact | None:
    """Return the stored artifact with a name, or None.

    `fingerprint` is the scoring fingerprint of the artifact's child. The folders of kernels and
    scores are named by it, and it is the hash of `model`.

    Raises:
        DeliftError: the artifact's manifest is damaged.
    """
    kind, version, last = (*name.split(":", 2), "", "")[:3]
    if kind in ARM_KINDS:
        folder = home.root / ARM_KINDS[kind] / version / last
    elif kind in ("dataset", "heldout"):
        folder = home.dataset(version)
    elif kind == "plan":
        folder = home.plan(version)
    elif fingerprint is None:
        return None
    elif kind == "kernel":
        folder = home.kernel(version, fingerprint)
    else:
        part, scores = "baseline" if kind == "baseline" else "in_context", home.scores(fingerprint)
        folder = scores if kind == "model" else scores / "versions" / version / part
    return next(_artifact_in(name, folder), None)


def _artifact_in(name: str, folder: Path) -> Iterator[Artifact]:
    """Yield the artifact in a folder, if there is one."""
    manifest = read_manifest(folder)
    if manifest is not None:
        yield Artifact(name, folder, manifest)


def metrics_of(home: Home, version: str, arm: str, adapter: str) -> dict[str, float] | None:
    """Return the metrics of an arm's report, or None if it measured an adapter of another hash."""
    report = find_artifact(home, f"report:{version}:{arm}")
    if report is None or report.manifest.parents.get(f"adapter:{version}:{arm}") != adapter:
        return None
    path = report.folder / REPORT
    return read_json(path)["evaluation"]["metrics"] if path.is_file() else {}


def current_hash(artifact: Artifact) -> str | None:
    """Return the stored artifact's hash as its children record it (for a kernel, the block's)."""
    if artifact.kind != "kernel":
        return artifact.manifest.content_hash
    return block_hashes(artifact.manifest).get(artifact.name.split(":", 2)[2])


def causes(home: Home, artifact: Artifact) -> list[Cause]:
    """Return all edges above an artifact, nearest first, each once.

    The walk follows what is stored now. If a parent was made again later, its `state` says so, and
    the edges above it are those of the stored one.
    """
    edges: list[Cause] = []
    queue, seen = [artifact], {artifact.name}
    for child in queue:
        for edge in direct_causes(home, child):
            edges.append(edge)
            if edge.stored is not None and edge.parent not in seen:
                seen.add(edge.parent)
                queue.append(edge.stored)
    return edges


def direct_causes(home: Home, child: Artifact) -> Iterator[Cause]:
    """What one artifact was made of, as its manifest records it."""
    for parent, recorded in child.manifest.parents.items():
        # The base model's report names its held-out set without the version.
        name = f"heldout:{child.version}" if parent == "heldout" else parent
        fingerprint = recorded if parent == "model" else child.manifest.fingerprint
        stored, state = find_artifact(home, name, fingerprint), "gone"
        if stored is not None:
            # A held-out set is recorded by the digest of the rows measured, a version by its own.
            same = stored.kind == "heldout" or current_hash(stored) == recorded
            state = "as recorded" if same else "changed since"
        yield Cause(child.name, parent, recorded, stored, state)


def all_artifacts(home: Home) -> Iterator[Artifact]:
    """Yield every stored artifact: datasets, plans, kernels, scores, and those of each arm."""
    for version in home.versions():
        yield from _artifact_in(f"dataset:{version}", home.dataset(version))
        yield from _artifact_in(f"plan:{version}", home.plan(version))
        yield from version_kernels(home, version)
        # The manifests of the version's scores: one for each fingerprint and part.
        for store in folders(home.root / "scores"):
            for folder in folders(store / "versions" / version):
                yield from _artifact_in(f"scores:{version}", folder)
        for kind in ARM_KINDS:
            yield from arm_artifacts(home, kind, version)


def arm_artifacts(home: Home, kind: str, version: str) -> Iterator[Artifact]:
    """Yield the stored subsets, adapters or reports of one version, sorted by arm."""
    for folder in folders(home.root / ARM_KINDS[kind] / version):
        if ARM_PATTERN.fullmatch(folder.name):
            yield from _artifact_in(f"{kind}:{version}:{folder.name}", folder)


def version_kernels(home: Home, version: str) -> Iterator[Artifact]:
    """Yield a version's kernels, one for each fingerprint."""
    for folder in folders(home.root / "kernels" / version):
        if FINGERPRINT_PATTERN.fullmatch(folder.name):
            yield from _artifact_in(f"kernel:{version}", folder)


def folders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without temporary and hidden ones."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if not p.name.startswith(".") and p.is_dir())


def stored_versions(home: Home, kind: str) -> list[str]:
    """Return the versions with a folder of one kind of artifact, even if the dataset is gone."""
    names = (folder.name for folder in folders(home.root / ARM_KINDS[kind]))
    return [name for name in names if NAME_PATTERN.fullmatch(name)]
