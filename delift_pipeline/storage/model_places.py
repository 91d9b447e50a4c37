"""Where the model folders of a home lie on this machine: `models.json`.

A version's manifest names its model so that a home can be moved: a hub id as it is, a folder inside
the home by `home:` and its place there, any other folder by `local:` and its name. `models.json`
says where the latter lie. It is the one file of a home that holds full paths.
"""

from pathlib import Path

from filelock import FileLock

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.storage.atomic import read_json, write_json
from delift_pipeline.storage.hashing import digest_text
from delift_pipeline.storage.home import Home

FILE = "models.json"
INSIDE, OUTSIDE = "home:", "local:"
DIGITS = 8


def named_model(home: Home, model: str) -> str:
    """The name under which a version keeps its model; a folder's place is remembered.

    Args:
        home: The home.
        model: A model's folder, a hub id, `demo`, `preset:NAME`, or a name given here before.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return model
    folder = folder.resolve()
    if folder.is_relative_to(home.root):
        return f"{INSIDE}{folder.relative_to(home.root).as_posix()}"
    # Two folders of one name are told apart by their places.
    name = f"{OUTSIDE}{folder.name}-{digest_text(str(folder))[:DIGITS]}"
    path = home.root / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{FILE}.lock")):
        known = places(home)
        if known.get(name) != str(folder):
            write_json(path, known | {name: str(folder)})
    return name


def model_at(home: Home, name: str) -> str:
    """What to load for a model as a version names it.

    Raises:
        Refused: its folder is not where it was, or this home does not know where it lies.
    """
    if name.startswith(INSIDE):
        return str(home.root / name.removeprefix(INSIDE))
    if not name.startswith(OUTSIDE):
        return name
    place = places(home).get(name)
    if place is None or not Path(place).is_dir():
        lies = f"lay at {place}, which is not there" if place else "is in no folder known here"
        reason = f"{name} {lies}: give --model DIR, or write its folder into {FILE} of the home"
        raise Refused(Fault(reason, field="model"))
    return place


def places(home: Home) -> dict[str, str]:
    """Name -> folder, of the model folders outside a home.

    Raises:
        Refused: the file is damaged.
    """
    path = home.root / FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): str(place) for name, place in read_json(path).items()}
    except (ValueError, AttributeError) as error:
        raise Refused(Fault(f"no JSON of names and folders: {error}", file=FILE)) from error
