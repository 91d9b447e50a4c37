"""The models that score and are trained: the demo model, a smaller one of its world, or any other.

The smaller one is pretrained once, by the demo model's own recipe on fewer and narrower layers, and
kept in the experiment's folder. Its name says how long: `small-1500` did 1,500 steps.
"""

import re
from pathlib import Path

from filelock import FileLock

from delift_pipeline.bench.quality_pools import MODEL
from delift_pipeline.errors import Refused
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions
from delift_pipeline.storage.atomic import replacing_folder

DEMO, SMALL = MODEL_DEMO, "small-1500"
HIDDEN, LAYERS, MLP = 32, 2, 96


def scorer_options(folder: Path, scorer: str, template: str = "world") -> ModelOptions:
    """The options of a scoring model; a small one is pretrained where it is not there yet.

    Args:
        folder: The experiment's.
        scorer: `demo`, or `small-STEPS`.
        template: The prompt template.

    Raises:
        Refused: no scorer has that name.
    """
    model = MODEL.model_copy(update={"template": template})
    if scorer == DEMO:
        return model
    found = re.fullmatch(r"small-([1-9]\d*)", scorer)
    if found is None:
        raise Refused(f"no scorer is called {scorer!r}; write demo or small-STEPS")
    where = folder / "models" / scorer
    _pretrain(where, int(found[1]))
    return model.model_copy(update={"model": str(where)})


def trained_options(model: str) -> ModelOptions:
    """The options of the model that is trained: `demo`, a folder or a hub id."""
    if model == DEMO:
        return MODEL
    return ModelOptions(model=model, threads=1)


def _pretrain(where: Path, steps: int) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    # Two workers ask for it at once; the second finds what the first has made.
    with FileLock(where.with_suffix(".lock")):
        if where.is_dir():
            return
        from tools.demo_model.pretrain import pretrain, save
        from tools.demo_model.recipe import Recipe

        recipe = Recipe(steps=steps, hidden=HIDDEN, layers=LAYERS, mlp=MLP)
        with replacing_folder(where) as temporary:
            save(pretrain(recipe), temporary)
