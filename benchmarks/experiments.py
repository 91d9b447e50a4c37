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
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.scoring.options import MODEL_DEMO
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import SELECTORS

Unit = Cell | TheoryCell
"""What is measured and kept together: one file."""
FINAL_SEEDS = tuple(range(400, 410))
"""The pools of the table of `MAIN_CONTENDERS`, looked at once, when the settings are committed."""
SEEDS = tuple(range(600, 605))
QUICK_SEEDS = (500, 501)
BUDGETS, WRONG_SHARES = (0.1, 0.2, 0.3), (0.0, 0.15)
ONE_BUDGET, ONE_SHARE = (0.2,), (0.15,)
SWEEP, QUICK_SWEEP = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.2, 0.5)
NEAR_COUNTS, QUICK_NEAR_COUNTS = (5, 10, 20, 40), (5, 20)
MAIN_CONTENDERS = (RANDOM, TFIDF, "delift", "delift_trusted")
"""The recommended selector and what it has to beat: ten pools, 20 minutes a stage on two cores."""
PAPER_SELECTORS = ("selectit", "deft_ucs", "delift_se")
"""Arms of the paper's tables that `stages` adds; `less` trains a model first: ask for it."""

SELECTIT_NOTE = (
    "selectit: the demo model knows the digits 1 to 5, but 42 of the 112 tokens of its rating "
    "prompts and question are unknown words to it. Its rating is the digit it would write next, no "
    "judgement of quality: the row shows that the selector runs, not what it is worth."
)
SIMILARITY_NOTE = (
    "embedding_similarity: cosine of all-MiniLM-L6-v2. Of the demo world's made-up words it says "
    "how much spelling two answers share, not whether they mean the same."
)
NO_JUDGE_NOTE = (
    "No judge was asked, so no score of one is shown: name one by --judge, with --endpoint or as a "
    "local model's folder."
)
JUDGE_NOTE = (
    "judge: mean score from 1 to 5 by {}; judge_scored: share of its replies that hold a score, "
    "the others are in no mean."
)
NO_QLORA_NOTE = (
    "qlora is left out: bitsandbytes is not installed here (pip install 'delift-pipeline[qlora]')."
)


@dataclass(frozen=True)
class ExperimentRequest:
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
        """One cell a stage, pool and share of wrong answers; `setting` as in `Setting`."""
        if self.modes:
            setting["modes"] = self.modes
        how = Setting(steps=self.steps, **setting)
        by_stage = compared if isinstance(compared, dict) else dict.fromkeys(STAGES, compared)
        return [
            Cell(stage, seed, share, budgets, tuple(by_stage[stage]), self.sizes, how)
            for stage in self.stages or stages
            for seed in self.seeds or (QUICK_SEEDS if self.quick else seeds)
            for share in shares
        ]

    def requested_contenders(self, *defaults: str) -> tuple[Contender, ...]:
        """The contenders asked for, else these."""
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
    """A selector under several options, named by them; `fixed` ones are left out of the name.

    A name holds `eta=10`, but `flmi` and `keep`: what is a word says what it is.
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
            # Without replay, so that nu alone differs.
            *_variants("delift_trusted", [{"nu": nu} for nu in nus], replay=0.0),
            *_variants("delift_trusted", [{"replay": share} for share in (0.2, 0.4)]),
        ],
    }
    return request.cells(compared)


def _with_suffix(request: ExperimentRequest, ending: str, **setting: Any) -> list[Cell]:
    """`delift` and `delift_trusted` under names of their own, in another setting."""
    both = contenders(("delift", "delift_trusted"), beside_random=False)
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
EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in _ALL}


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        Refused: there is none.
    """
    refuse_unknown(name)
    return EXPERIMENTS[name]


def units_of(chosen: Experiment, request: ExperimentRequest) -> Sequence[Unit]:
    """What an experiment measures.

    Raises:
        Refused: contenders are asked of an experiment that names its own, one is unknown, or
            another model of an experiment that trains the demo model, or a judge of one without
            generated answers.
    """
    if request.model != MODEL_DEMO and chosen.name != "tuning":
        reason = f"{chosen.name} trains the demo model; the experiment tuning takes any"
        raise Refused(Fault(reason, field="--model"))
    if request.judge and chosen.name != "stages":
        reason = f"{chosen.name} generates no answers to judge; the experiment stages does"
        raise Refused(Fault(reason, field="--judge"))
    if request.names and not chosen.takes_names:
        reason = f"the experiment {chosen.name} names its own contenders; ask for stages only"
        raise Refused(Fault(reason, field="--only"))
    return chosen.units(request)
