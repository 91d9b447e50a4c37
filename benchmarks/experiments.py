"""The quality experiments by name: what they compare, and on which pools.

    selectors          every selector at 10, 20 and 30 %
    stages             arms x metrics x modes in each stage, like tables 1 to 8 of the paper
    budget             shares from 5 to 50 %
    annotation_budget  how many pairs are scored: 5 to 40 near prompts per record, and all pairs
    tuning             LoRA, QLoRA and full fine-tuning on the same subsets
    objectives         FL, the forms of FLMI and FLCG, with other eta and nu
    kernel             forms of utility, scaling, diagonal, and another template
    cost               seconds and operations of selection and training, and the results
    transfer           pairs scored by a smaller model
    theory             the log-probability utility equals conditional mutual information

We fixed the settings before we ran any experiment.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from benchmarks.cells import SMALL, Cell, JudgeConfig, Setting
from benchmarks.contenders import (
    FULL,
    INITIAL,
    RANDOM,
    TFIDF,
    Contender,
    contenders,
)
from benchmarks.measure import Mode
from benchmarks.pools import Sizes
from benchmarks.theory import TheoryCell
from delift_pipeline.bench.quality import refuse_unknown
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.scoring.options import MODEL_DEMO
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import SELECTORS

Unit = Cell | TheoryCell
"""What is measured together and stored in one file."""
FINAL_SEEDS = tuple(range(400, 410))
"""Pools of the final table of `MAIN_CONTENDERS`. We used them once, with settings fixed before."""
SEEDS = tuple(range(600, 605))
QUICK_SEEDS = (500, 501)
BUDGETS, WRONG_SHARES = (0.1, 0.2, 0.3), (0.0, 0.15)
ONE_BUDGET, ONE_SHARE = (0.2,), (0.15,)
SWEEP, QUICK_SWEEP = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.2, 0.5)
NEAR_COUNTS, QUICK_NEAR_COUNTS = (5, 10, 20, 40), (5, 20)
MAIN_CONTENDERS = (RANDOM, TFIDF, "delift", "delift_trusted")
"""The recommended selector and its rivals: ten pools take 20 minutes per stage on two cores."""
PAPER_SELECTORS = ("selectit", "deft_ucs", "delift_se")
"""Selectors of the paper's tables that `stages` adds. `less` trains a model: name it to add it."""

SELECTIT_NOTE = (
    "selectit: the demo model knows the digits 1 to 5, but 42 of the 112 tokens of its rating "
    "prompts and question are unknown words to it. So its ratings do not measure quality: the row "
    "shows that the selector runs, not how good it is."
)
SIMILARITY_NOTE = (
    "embedding_similarity: cosine of all-MiniLM-L6-v2. The demo world has invented words, so "
    "it measures how similar the spelling of two answers is, not their meaning."
)
NO_JUDGE_NOTE = (
    "There are no scores of a judge. To add them, pass --judge with a local model's folder, or "
    "--judge and --endpoint."
)
JUDGE_NOTE = (
    "judge: mean score from 1 to 5 by {}; judge_scored: share of its replies that have a score. "
    "The mean leaves out the other replies."
)
NO_QLORA_NOTE = (
    "qlora is left out because bitsandbytes is not installed. Run "
    "`pip install 'delift-pipeline[qlora]'` to include it."
)


@dataclass(frozen=True)
class ExperimentRequest:
    """A user's request to run an experiment.

    Attributes:
        stages: The stages; empty for the experiment's own.
        seeds: Seeds of the pools; empty for the experiment's own.
        names: Contenders, for experiments that can take any; empty for the experiment's own.
        quick: Two pools, one budget, 15 % wrong answers.
        sizes: Numbers of records.
        steps: Optimizer steps by budget, instead of the default.
        modes: How subsets are used; empty for the experiment's own.
        model: What `tuning` trains: `demo`, a folder or a hub id (the paper: facebook/opt-125m).
        judge: The judge of the answers of `stages`, or None.
    """

    stages: tuple[Stage, ...] = ()
    seeds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    quick: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    steps: dict[float, int] = field(default_factory=dict)
    modes: tuple[Mode, ...] = ()
    model: str = MODEL_DEMO
    judge: JudgeConfig | None = None

    def cells(
        self,
        compared: Sequence[Contender] | dict[Stage, Sequence[Contender]],
        *,
        stages: Sequence[Stage] = STAGES,
        seeds: Sequence[int] = SEEDS,
        budgets: tuple[float, ...] = ONE_BUDGET,
        shares: Sequence[float] = ONE_SHARE,
        **setting: Any,
    ) -> list[Cell]:
        """Return a cell per stage, pool and share of wrong answers; see `Setting` for `setting`."""
        if self.modes:
            setting["modes"] = self.modes
        cell_setting = Setting(steps=self.steps, **setting)
        by_stage = compared if isinstance(compared, dict) else dict.fromkeys(STAGES, compared)
        return [
            Cell(stage, seed, share, budgets, tuple(by_stage[stage]), self.sizes, cell_setting)
            for stage in self.stages or stages
            for seed in self.seeds or (QUICK_SEEDS if self.quick else seeds)
            for share in shares
        ]

    def requested_contenders(self, *defaults: str) -> tuple[Contender, ...]:
        """Return the requested contenders, or the defaults."""
        return contenders(self.names or defaults)


def _selectors(request: ExperimentRequest) -> list[Cell]:
    final = bool(request.names) and set(request.names) <= set(MAIN_CONTENDERS)
    return request.cells(
        request.requested_contenders(INITIAL, *SELECTORS, TFIDF, "delift-published"),
        seeds=FINAL_SEEDS if final else SEEDS,
        budgets=ONE_BUDGET if request.quick else BUDGETS,
        shares=ONE_SHARE if request.quick else WRONG_SHARES,
    )


def _stages(request: ExperimentRequest) -> list[Cell]:
    compared = request.requested_contenders(
        INITIAL, *MAIN_CONTENDERS, *(() if request.quick else PAPER_SELECTORS), FULL
    )
    return request.cells(compared, modes=("lora", "in_context"), texts=True, judge=request.judge)


def _budget(request: ExperimentRequest) -> list[Cell]:
    return request.cells(
        request.requested_contenders(*MAIN_CONTENDERS),
        budgets=QUICK_SWEEP if request.quick else SWEEP,
    )


def _annotation_budget(request: ExperimentRequest) -> list[Cell]:
    cells = request.cells(contenders(("delift",)))
    for count in QUICK_NEAR_COUNTS if request.quick else NEAR_COUNTS:
        compared = [
            Contender(f"delift-near-{count}", "delift", {"pairs": "neighbours"}),
            Contender(f"delift_trusted-near-{count}", "delift_trusted"),
        ]
        cells += request.cells(compared, neighbours=count)
    return cells


def _can_quantise() -> bool:
    return find_spec("bitsandbytes") is not None


def _tuning(request: ExperimentRequest) -> list[Cell]:
    return request.cells(
        request.requested_contenders(INITIAL, TFIDF, "delift_trusted", FULL),
        stages=("instruction_tuning",),
        modes=("lora", "qlora", "full") if _can_quantise() else ("lora", "full"),
        trained=request.model,
    )


def _variants(selector: str, varied: Iterable[dict[str, Any]], **fixed: Any) -> list[Contender]:
    """Return a selector with several options, which its names show; `fixed` options are not shown.

    A name shows the key of a number (`eta=10`), but only the value of a word (`flmi`, `keep`).
    """

    def variant_name(options: dict[str, Any]) -> str:
        parts = [v if isinstance(v, str) else f"{k}={v:g}" for k, v in options.items()]
        return "-".join([selector, *parts])

    return [Contender(variant_name(options), selector, options | fixed) for options in varied]


def _objectives(request: ExperimentRequest) -> list[Cell]:
    etas, nus = ((1.0,), (0.0, 1.0)) if request.quick else ((0.1, 1.0, 10.0), (0.0, 0.5, 1.0, 1.5))
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
            # Without replay, so only nu differs.
            *_variants("delift_trusted", [{"nu": nu} for nu in nus], replay=0.0),
            *_variants("delift_trusted", [{"replay": share} for share in (0.2, 0.4)]),
        ],
    }
    return request.cells(compared)


def _with_suffix(request: ExperimentRequest, ending: str, **setting: Any) -> list[Cell]:
    """Return cells of `delift` and `delift_trusted` in another setting, with longer names."""
    both = contenders(("delift", "delift_trusted"), with_random=False)
    return request.cells([replace(one, name=one.name + ending) for one in both], **setting)


def _kernel(request: ExperimentRequest) -> list[Cell]:
    forms = [
        {"utility": utility, "scaling": scaling, "diagonal": diagonal}
        for utility in ("distance", "kl", "kl_mean")
        for scaling in ("clip", "min_max")
        for diagonal in ("mask", "keep")
    ]
    cells = request.cells([*contenders(("delift_trusted",)), *_variants("delift", forms)])
    return cells + _with_suffix(request, "-paper-template", template="paper")


def _cost(request: ExperimentRequest) -> list[Cell]:
    compared = request.requested_contenders(INITIAL, *MAIN_CONTENDERS, FULL)
    return request.cells(compared, stages=("instruction_tuning",), costs=True)


def _transfer(request: ExperimentRequest) -> list[Cell]:
    cells = request.cells(contenders((TFIDF, "delift", "delift_trusted")))
    return cells + _with_suffix(request, "-by-small", scorer=SMALL)


def _theory(request: ExperimentRequest) -> list[TheoryCell]:
    return [TheoryCell(seed) for seed in request.seeds or (QUICK_SEEDS if request.quick else SEEDS)]


def _selectors_notes(request: ExperimentRequest) -> tuple[str, ...]:
    return (SELECTIT_NOTE,) if not request.names or "selectit" in request.names else ()


def _stages_notes(request: ExperimentRequest) -> tuple[str, ...]:
    judge_note = JUDGE_NOTE.format(request.judge.options.model) if request.judge else NO_JUDGE_NOTE
    rated = "selectit" in request.names or not (request.names or request.quick)
    return (SIMILARITY_NOTE, judge_note, *((SELECTIT_NOTE,) if rated else ()))


@dataclass(frozen=True)
class Experiment:
    """An experiment: what it measures, and how its page shows the results.

    Attributes:
        name: Its name in the command.
        about: One sentence for the page.
        units: Returns what to measure for a request.
        across: The column on the x axis of its curves, or None for bars.
        takes_names: Whether a request can name contenders.
        notes: Returns what a reader of the table must know.
    """

    name: str
    about: str
    units: Callable[[ExperimentRequest], Sequence[Unit]]
    across: str | None = None
    takes_names: bool = True
    notes: Callable[[ExperimentRequest], tuple[str, ...]] = lambda request: ()


_ALL = (
    Experiment("selectors", "Every selector on equal terms.", _selectors, notes=_selectors_notes),
    Experiment("stages", "Arms, metrics and modes in each stage.", _stages, notes=_stages_notes),
    Experiment("budget", "How much of a pool is enough?", _budget, "budget"),
    Experiment(
        "annotation_budget",
        "How many pairs have to be scored?",
        _annotation_budget,
        "pairs_per_record",
        takes_names=False,
    ),
    Experiment(
        "tuning",
        "The same subsets, fine-tuned by other methods.",
        _tuning,
        notes=lambda request: () if _can_quantise() else (NO_QLORA_NOTE,),
    ),
    Experiment("objectives", "Which objective, and how weighted?", _objectives, takes_names=False),
    Experiment("kernel", "Which form of utility, and how scaled?", _kernel, takes_names=False),
    Experiment("cost", "What selection and training cost, and what they give.", _cost),
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
EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in _ALL}


def experiment(name: str) -> Experiment:
    """Return the experiment with that name.

    Raises:
        InputError: there is no such experiment.
    """
    refuse_unknown(name)
    return EXPERIMENTS[name]


def units_of(chosen: Experiment, request: ExperimentRequest) -> Sequence[Unit]:
    """Return what an experiment measures for a request.

    Raises:
        InputError: a contender is unknown, or the request has contenders, a model or a judge that
            the experiment cannot use.
    """
    if request.model != MODEL_DEMO and chosen.name != "tuning":
        reason = f"{chosen.name} trains only the demo model. Use the experiment tuning for others"
        raise InputError(Fault(reason, field="--model"))
    if request.judge and chosen.name != "stages":
        reason = f"{chosen.name} generates no answers to judge. Use the experiment stages"
        raise InputError(Fault(reason, field="--judge"))
    if request.names and not chosen.takes_names:
        reason = f"the experiment {chosen.name} has its own contenders. Name only stages"
        raise InputError(Fault(reason, field="--only"))
    return chosen.units(request)
