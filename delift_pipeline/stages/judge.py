"""Let a judge score the stored answers of arms."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_json, write_parquet, write_text
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import BASE_MODEL, Home, check_version
from delift_pipeline.core.plots import Bar, draw_bars, svg
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.judge.judges import EndpointJudge, Judge, LocalJudge
from delift_pipeline.evaluation.judge.questions import JudgeOptions, questions_for
from delift_pipeline.evaluation.judge.run import (
    Estimate,
    Judgement,
    ask_judge,
    estimate,
    record_means,
)
from delift_pipeline.evaluation.report import render
from delift_pipeline.evaluation.result import SAMPLES, Difference, mean_and_error
from delift_pipeline.scoring.options import AUTO, PLAIN, ModelOptions

ROWS, FACTS, PAGE = "judged.parquet", "judged.json", "judged.html"


@dataclass(frozen=True)
class AnswerSet:
    """The answers of one model: a version with an arm's name, or `initial` for the base model."""

    version: str
    arm: str

    def __str__(self) -> str:
        return f"{self.version}/{self.arm}"


@dataclass(frozen=True)
class JudgedAnswers:
    """A set of answers with its scores.

    Attributes:
        minus_first: The scores minus those of the first set, paired by record. None for the first.
    """

    answers: AnswerSet
    judged: Judgement
    minus_first: Difference | None

    def as_json(self) -> dict[str, Any]:
        """Everything but the single replies."""
        gap = asdict(self.minus_first) if self.minus_first else None
        return {"arm": str(self.answers), **self.judged.as_json(), "minus_first": gap}


@dataclass(frozen=True)
class JudgeSetup:
    """A judge for the answers of a home.

    Attributes:
        model: The model of a judge that runs here. None if the judge is at an endpoint.
    """

    home: Home
    options: JudgeOptions
    model: ModelOptions | None = None

    @property
    def folder(self) -> Path:
        """The folder of this judge's replies. The weights identify a judge that runs here."""
        from delift_pipeline.scoring.fingerprint import fingerprint_of

        options = self.model
        if options is not None and options.template == AUTO:
            # A judge reads no records. Its name stays what it was when `plain` was the default.
            options = options.model_copy(update={"template": PLAIN})
        model = {"model": fingerprint_of(options).digest} if options else {}
        return self.home.judgements(digest_json(self.options.identity | model)[:32])

    def judge(self) -> Judge:
        """Return the judge. A judge that runs here is loaded now."""
        if self.model is None:
            return EndpointJudge(self.options)
        from delift_pipeline.scoring.model import load_model

        return LocalJudge(load_model(self.model), self.options)


def estimate_judging(setup: JudgeSetup, answer_sets: Sequence[AnswerSet]) -> Estimate:
    """Estimate requests, tokens and price. Answers that were judged before cost nothing."""
    questions = [
        one
        for answers in answer_sets
        for one in questions_for(_samples(setup.home, answers), setup.options)
    ]
    return estimate(questions, setup.folder, setup.options)


def judge_answer_sets(
    setup: JudgeSetup, answer_sets: Sequence[AnswerSet], progress: Progress
) -> list[JudgedAnswers]:
    """Let the judge score stored answers. An answer that it scored before is not sent again.

    Writes `judged.parquet` (one row for each question), `judged.json` and `judged.html` under
    `judgements/<judge>/<version>/<arm>/`.

    Raises:
        InputError: an arm has no report, or its report has no generated answers.
    """
    first, questions = answer_sets[0], {}
    for answers in answer_sets:
        questions[answers] = questions_for(_samples(setup.home, answers), setup.options)
    judge, folder = setup.judge(), setup.folder
    scores = {
        answers: ask_judge(judge, some, folder, progress) for answers, some in questions.items()
    }
    results = []
    for answers, one in scores.items():
        gap = _difference(one, scores[first]) if answers != first else None
        results.append(JudgedAnswers(answers, one, gap))
        _write(setup, results[-1])
    return results


def judgement_facts(
    setup: JudgeSetup | None, version: str, arm: str, progress: Progress
) -> dict[str, float | int]:
    """Return the judge's scores of an arm's answers, to show next to its report.

    They are stored in the judge's folder, so the content and data version of the report stay
    unchanged.
    """
    if setup is None:
        return {}
    (one,) = judge_answer_sets(setup, [AnswerSet(version, arm)], progress)
    scores = one.judged.overall
    facts: dict[str, float | int] = {
        f"judge_{name}": getattr(scores, name) for name in ("scored", "unparsable", "failed")
    }
    if scores.mean is not None and scores.se is not None:
        facts |= {"judge_score": scores.mean, "judge_score_se": scores.se}
    return facts


def _samples(home: Home, answers: AnswerSet) -> pl.DataFrame:
    if answers.arm == BASE_MODEL:
        reports = home.root / "reports" / check_version(answers.version)
        paths = sorted(reports.glob(f"{BASE_MODEL}-*/{SAMPLES}"))
    else:
        paths = [home.report(answers.version, answers.arm) / SAMPLES]
    if len(paths) > 1:
        reason = f"{answers} has reports of {len(paths)} models. Name an arm instead"
        raise InputError(reason, field="arm")
    if not paths or not paths[0].is_file():
        raise InputError(f"{answers} has no report yet. Evaluate it first", field="arm")
    return pl.read_parquet(paths[0])


def _difference(ours: Judgement, theirs: Judgement) -> Difference | None:
    both = record_means(ours.rows).join(record_means(theirs.rows), on="record_id", suffix="_theirs")
    if both.is_empty():
        return None
    mean, error = mean_and_error(both["score"] - both["score_theirs"])
    return Difference(mean, error, mean, both.height)


def _write(setup: JudgeSetup, one: JudgedAnswers) -> None:
    folder = setup.folder / one.answers.version / one.answers.arm
    facts = {"judge": setup.options.identity, "mode": setup.options.mode, **one.as_json()}
    write_parquet(folder / ROWS, one.judged.rows)
    write_json(folder / FACTS, facts)
    plots = []
    for name, scores in one.judged.dimensions.items():
        counts = [Bar(score, n, None, f"{n:,}") for score, n in scores.distribution.items()]
        plot = svg(draw_bars({"": counts}), "answers by score")
        plots.append({"title": name.replace("_", " "), "svg": plot})
    page = render("judged.html.j2", title=f"{one.answers} as judged", facts=facts, plots=plots)
    write_text(folder / PAGE, page)
