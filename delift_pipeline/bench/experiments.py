"""The quality experiments by name: what each compares, and on which pools.

    selectors          every selector at 10, 20 and 30 %
    stages             arms x metrics x modes in each stage, the shape of the paper's tables 1 to 8
    budget             shares from 5 to 50 %
    annotation_budget  how many pairs are scored: 5 to 40 near prompts a record, and all pairs
    tuning             LoRA, QLoRA and full fine-tuning on the same subsets
    objectives         FL, the forms of FLMI and FLCG, with other eta and nu
    kernel             forms of utility, scaling, diagonal, and another template
    cost               seconds and operations of choosing and training beside the scores
    transfer           pairs scored by a smaller model
    theory             the log-probability utility against conditional mutual information, exactly

Settings were written down before any of them was run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from delift_pipeline.bench.contenders import FULL, INITIAL, RANDOM, Contender, contenders
from delift_pipeline.bench.experiment_notes import (
    can_quantise,
    noted_selectors,
    noted_stages,
    noted_tuning,
    nothing_noted,
)
from delift_pipeline.bench.experiment_theory import TheoryCell
from delift_pipeline.bench.quality_cells import Cell, Setting
from delift_pipeline.bench.quality_judge import Jury
from delift_pipeline.bench.quality_measure import Mode
from delift_pipeline.bench.quality_pools import Sizes
from delift_pipeline.bench.quality_scorer import DEMO, SMALL
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import SELECTORS

FINAL_SEEDS = tuple(range(400, 410))
"""The pools of the table of `COMPARED`, looked at once, when the settings are committed."""
SEEDS = tuple(range(600, 605))
QUICK_SEEDS = (500, 501)
BUDGETS, WRONG_SHARES = (0.1, 0.2, 0.3), (0.0, 0.15)
ONE_BUDGET, ONE_SHARE = (0.2,), (0.15,)
SWEEP, QUICK_SWEEP = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.2, 0.5)
NEAR, QUICK_NEAR = (5, 10, 20, 40), (5, 20)
COMPARED = (RANDOM, "delift_se-tfidf", "delift", "delift_trusted")
"""The recommended selector and what it has to beat: ten pools, 20 minutes a stage on two cores."""


PAPERS = ("selectit", "deft_ucs", "delift_se")
"""Arms of the paper's tables that `stages` adds; `less` trains a model first: ask for it."""


class Unit(Protocol):
    """What is measured and kept together: one file."""

    @property
    def key(self) -> str:
        """Names what is measured; equal units have equal keys."""
        ...

    @property
    def stage(self) -> str:
        """The stage its rows belong to."""
        ...

    @property
    def seed(self) -> int:
        """Its pool."""
        ...

    @property
    def wrong_share(self) -> float:
        """Its share of wrong answers."""
        ...

    def run(self, folder: Any) -> list[dict[str, Any]]:
        """Its rows."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a user asks of an experiment.

    Attributes:
        stages: The stages; empty for the experiment's own.
        seeds: The pools; empty for the experiment's own.
        names: Contenders, for the experiments that take any; empty for the experiment's own.
        quick: Two pools, one budget, 15 % wrong answers.
        sizes: Numbers of records.
        steps: Optimizer steps by budget where they are not the usual ones.
        modes: What is done with subsets; empty for the experiment's own.
        model: What `tuning` trains: `demo`, a folder or a hub id, the paper's facebook/opt-125m.
        judge: Who scores the answers of `stages`, or None.
    """

    stages: tuple[Stage, ...] = ()
    seeds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    steps: dict[float, int] = field(default_factory=dict)
    modes: tuple[Mode, ...] = ()
    model: str = DEMO
    judge: Jury | None = None

    def cells(
        self,
        compared: Sequence[Contender] | dict[Stage, Sequence[Contender]],
        *,
        stages: Sequence[Stage] = STAGES,
        seeds: Sequence[int] = SEEDS,
        budgets: Sequence[float] = ONE_BUDGET,
        shares: Sequence[float] = ONE_SHARE,
        setting: Setting | None = None,
    ) -> list[Cell]:
        """One cell a stage, pool and share of wrong answers."""
        setting = replace(setting or Setting(), steps=self.steps)
        if self.modes:
            setting = replace(setting, modes=self.modes)
        return [
            Cell(
                stage,
                seed,
                share,
                tuple(budgets),
                tuple(compared[stage] if isinstance(compared, dict) else compared),
                self.sizes,
                setting,
            )
            for stage in self.stages or stages
            for seed in self.seeds or (QUICK_SEEDS if self.quick else seeds)
            for share in shares
        ]

    def named(self, *defaults: str) -> tuple[Contender, ...]:
        """The contenders asked for, else these."""
        return contenders(self.names or defaults)


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: As asked for.
        about: One sentence for the page.
        units: What it measures, from what is asked.
        across: The column that its curves run over, or None for bars.
        takes_names: Whether contenders can be asked for.
        notes: What a reader of its table has to know, from what is asked.
    """

    name: str
    about: str
    units: Callable[[Asked], Sequence[Unit]]
    across: str | None = None
    takes_names: bool = True
    notes: Callable[[Asked], tuple[str, ...]] = nothing_noted


def _selectors(asked: Asked) -> list[Cell]:
    final = bool(asked.names) and set(asked.names) <= set(COMPARED)
    compared = asked.named(INITIAL, *SELECTORS, "delift_se-tfidf", "delift-published")
    return asked.cells(
        compared,
        seeds=FINAL_SEEDS if final else SEEDS,
        budgets=ONE_BUDGET if asked.quick else BUDGETS,
        shares=ONE_SHARE if asked.quick else WRONG_SHARES,
    )


def _stages(asked: Asked) -> list[Cell]:
    setting = Setting(modes=("lora", "in_context"), texts=True, judge=asked.judge)
    more = () if asked.quick else PAPERS
    return asked.cells(asked.named(INITIAL, *COMPARED, *more, FULL), setting=setting)


def _budget(asked: Asked) -> list[Cell]:
    return asked.cells(asked.named(*COMPARED), budgets=QUICK_SWEEP if asked.quick else SWEEP)


def _annotation_budget(asked: Asked) -> list[Cell]:
    cells = asked.cells(contenders(("delift",)))
    near = {"pairs": "neighbours"}
    for count in QUICK_NEAR if asked.quick else NEAR:
        compared = [
            Contender(f"delift-near-{count}", "delift", near),
            Contender(f"delift_trusted-near-{count}", "delift_trusted"),
        ]
        cells += asked.cells(compared, setting=Setting(neighbours=count))
    return cells


def _tuning(asked: Asked) -> list[Cell]:
    modes: tuple[Mode, ...] = ("lora", "qlora", "full") if can_quantise() else ("lora", "full")
    return asked.cells(
        asked.named(INITIAL, "delift_se-tfidf", "delift_trusted", FULL),
        stages=("instruction_tuning",),
        setting=Setting(modes=modes, trained=asked.model),
    )


def _variants(selector: str, varied: Iterable[dict[str, Any]], **fixed: Any) -> list[Contender]:
    """A selector under several options, named by them; `fixed` ones are left out of the name."""
    return [
        Contender("-".join([selector, *map(_named, options.items())]), selector, options | fixed)
        for options in varied
    ]


def _named(option: tuple[str, Any]) -> str:
    """`eta=10`, but `flmi` and `keep`: what is a word says what it is."""
    name, value = option
    return value if isinstance(value, str) else f"{name}={value:g}"


def _objectives(asked: Asked) -> list[Cell]:
    etas, nus = ((1.0,), (0.0, 1.0)) if asked.quick else ((0.1, 1.0, 10.0), (0.0, 0.5, 1.0, 1.5))
    fl = {"objective": "fl"}
    targeted = [
        {"objective": name, "eta": eta} for name in ("flmi", "fl1mi", "fl2mi") for eta in etas
    ]
    random = contenders(())
    compared: dict[Stage, Sequence[Contender]] = {
        "instruction_tuning": [*random, *_variants("delift", [fl])],
        "task_specific": [
            *random,
            *_variants("delift", [fl, *targeted]),
            *_variants("delift_trusted", [{"eta": eta} for eta in etas]),
        ],
        "continual": [
            *random,
            *_variants("delift", [fl, *({"objective": "flcg", "nu": nu} for nu in nus)]),
            # Without replay, so that nu alone differs.
            *_variants("delift_trusted", [{"nu": nu} for nu in nus], replay=0.0),
            *_variants("delift_trusted", [{"replay": share} for share in (0.2, 0.4)]),
        ],
    }
    return asked.cells(compared)


def _kernel(asked: Asked) -> list[Cell]:
    forms = [
        {"utility": utility, "scaling": scaling, "diagonal": diagonal}
        for utility in ("distance", "kl", "kl_mean")
        for scaling in ("clip", "min_max")
        for diagonal in ("mask", "keep")
    ]
    trusted = contenders(("delift_trusted",))
    cells = asked.cells([*trusted, *_variants("delift", forms)])
    other = contenders(("delift", "delift_trusted"))[1:]
    renamed = [one.renamed(f"{one.name}-paper-template") for one in other]
    return cells + asked.cells(renamed, setting=Setting(template="paper"))


def _cost(asked: Asked) -> list[Cell]:
    return asked.cells(
        asked.named(INITIAL, *COMPARED, FULL),
        stages=("instruction_tuning",),
        setting=Setting(costs=True),
    )


def _transfer(asked: Asked) -> list[Cell]:
    scored = contenders(("delift", "delift_trusted"))[1:]
    cells = asked.cells([*contenders(("delift_se-tfidf",)), *scored])
    small = [one.renamed(f"{one.name}-by-small") for one in scored]
    return cells + asked.cells(small, setting=Setting(scorer=SMALL))


def _theory(asked: Asked) -> list[TheoryCell]:
    return [TheoryCell(seed) for seed in asked.seeds or (QUICK_SEEDS if asked.quick else SEEDS)]


EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        Experiment(
            "selectors", "Every selector on equal terms.", _selectors, notes=noted_selectors
        ),
        Experiment("stages", "Arms, metrics and modes in each stage.", _stages, notes=noted_stages),
        Experiment("budget", "How much of a pool is enough?", _budget, "budget"),
        Experiment(
            "annotation_budget",
            "How many pairs have to be scored?",
            _annotation_budget,
            "pairs_per_record",
            takes_names=False,
        ),
        Experiment(
            "tuning", "The same subsets, fine-tuned by other methods.", _tuning, notes=noted_tuning
        ),
        Experiment(
            "objectives", "Which objective, and how weighted?", _objectives, takes_names=False
        ),
        Experiment("kernel", "Which form of utility, and how scaled?", _kernel, takes_names=False),
        Experiment("cost", "What choosing and training cost beside what they give.", _cost),
        Experiment(
            "transfer",
            "Pairs scored by a smaller model than the one that is trained.",
            _transfer,
            takes_names=False,
        ),
        Experiment(
            "theory",
            "The utility in log-probabilities is conditional pointwise mutual information.",
            _theory,
            takes_names=False,
        ),
    )
}


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        Refused: there is none.
    """
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        reason = f"no experiment is called {name!r}; there are {known}"
        raise Refused(Fault(reason, field="--experiment"))
    return EXPERIMENTS[name]


def units_of(chosen: Experiment, asked: Asked) -> Sequence[Unit]:
    """What an experiment measures.

    Raises:
        Refused: contenders are asked of an experiment that names its own, one is unknown, or
            another model of an experiment that trains the demo model, or a judge of one without
            generated answers.
    """
    if asked.model != DEMO and chosen.name != "tuning":
        reason = f"{chosen.name} trains the demo model; the experiment tuning takes any"
        raise Refused(Fault(reason, field="--model"))
    if asked.judge and chosen.name != "stages":
        reason = f"{chosen.name} generates no answers to judge; the experiment stages does"
        raise Refused(Fault(reason, field="--judge"))
    if asked.names and not chosen.takes_names:
        reason = f"the experiment {chosen.name} names its own contenders; ask for stages only"
        raise Refused(Fault(reason, field="--only"))
    return chosen.units(asked)
