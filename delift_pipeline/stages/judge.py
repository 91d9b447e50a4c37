"""Judge the stored answers of arms, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_json, write_parquet, write_text
from delift_pipeline.core.errors import Refused
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import BASE_MODEL, Home, checked_version
from delift_pipeline.core.plots import Bar, bars, svg
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.judge.judges import EndpointJudge, Judge, LocalJudge
from delift_pipeline.evaluation.judge.questions import JudgeOptions, questions_for
from delift_pipeline.evaluation.judge.run import Estimate, Judged, ask, estimate, record_means
from delift_pipeline.evaluation.report import render
from delift_pipeline.evaluation.result import SAMPLES, Difference, mean_and_error
from delift_pipeline.scoring.options import ModelOptions

ROWS, FACTS, PAGE = "judged.parquet", "judged.json", "judged.html"


@dataclass(frozen=True)
class Side:
    """One model's answers: `version` and an arm's name, or `initial` for the base model."""

    version: str
    arm: str

    def __str__(self) -> str:
        return f"{self.version}/{self.arm}"


@dataclass(frozen=True)
class JudgedSide:
    """A side, what the judge said of it, and that minus the first side's, paired by record."""

    side: Side
    judged: Judged
    minus_first: Difference | None

    def as_json(self) -> dict[str, Any]:
        """All but the single replies."""
        gap = asdict(self.minus_first) if self.minus_first else None
        return {"arm": str(self.side), **self.judged.as_json(), "minus_first": gap}


@dataclass(frozen=True)
class Panel:
    """A judge, ready to be asked about a home's answers.

    Attributes:
        model: How a local judge is loaded; None for an endpoint.
    """

    home: Home
    options: JudgeOptions
    model: ModelOptions | None = None

    @property
    def folder(self) -> Path:
        """Where this judge's replies are kept: a local judge is known by its weights."""
        from delift_pipeline.scoring.fingerprint import fingerprint_of

        model = {"model": fingerprint_of(self.model).digest} if self.model else {}
        return self.home.judgements(digest_json(self.options.identity | model)[:32])

    def judge(self) -> Judge:
        """The judge itself; a local one is loaded here."""
        if self.model is None:
            return EndpointJudge(self.options)
        from delift_pipeline.scoring.model import load_model

        return LocalJudge(load_model(self.model), self.options)


def estimate_judging(panel: Panel, sides: Sequence[Side]) -> Estimate:
    """What judging the sides takes, earlier replies not counted."""
    questions = [
        one for side in sides for one in questions_for(_samples(panel.home, side), panel.options)
    ]
    return estimate(questions, panel.folder, panel.options)


def judge_sides(panel: Panel, sides: Sequence[Side], progress: Progress) -> list[JudgedSide]:
    """Judge the stored answers of each side; what was judged before is not asked again.

    Writes `judged.parquet` (one row a question), `judged.json` and `judged.html` under
    `judgements/<judge>/<version>/<arm>/`.

    Raises:
        Refused: a side has no report, or its report no generated answers.
    """
    asked = {side: questions_for(_samples(panel.home, side), panel.options) for side in sides}
    judge, folder = panel.judge(), panel.folder
    found = {side: ask(judge, questions, folder, progress) for side, questions in asked.items()}
    judged = []
    for side, one in found.items():
        gap = _gap(one, found[sides[0]]) if side != sides[0] else None
        judged.append(JudgedSide(side, one, gap))
        _write(panel, judged[-1])
    return judged


def judgement_facts(
    panel: Panel | None, version: str, arm: str, progress: Progress
) -> dict[str, float | int]:
    """What the judge says of an arm's answers, to be shown beside its report.

    The report's own content and data version stay as they are: a judgement is an opinion about
    it, kept in the judge's folder.
    """
    if panel is None:
        return {}
    (one,) = judge_sides(panel, [Side(version, arm)], progress)
    scores = one.judged.overall
    facts: dict[str, float | int] = {
        f"judge_{name}": getattr(scores, name) for name in ("scored", "unparsable", "failed")
    }
    if scores.mean is not None and scores.se is not None:
        facts |= {"judge_score": scores.mean, "judge_score_se": scores.se}
    return facts


def _samples(home: Home, side: Side) -> pl.DataFrame:
    if side.arm == BASE_MODEL:
        reports = home.root / "reports" / checked_version(side.version)
        paths = sorted(reports.glob(f"{BASE_MODEL}-*/{SAMPLES}"))
    else:
        paths = [home.report(side.version, side.arm) / SAMPLES]
    if len(paths) > 1:
        reason = f"{side} was measured with {len(paths)} models: judge an arm"
        raise Refused(reason, field="arm")
    if not paths or not paths[0].is_file():
        raise Refused(f"{side} has no report yet: evaluate it first", field="arm")
    return pl.read_parquet(paths[0])


def _gap(ours: Judged, theirs: Judged) -> Difference | None:
    both = record_means(ours.rows).join(record_means(theirs.rows), on="record_id", suffix="_theirs")
    if both.is_empty():
        return None
    mean, error = mean_and_error(both["score"] - both["score_theirs"])
    return Difference(mean, error, mean, both.height)


def _write(panel: Panel, one: JudgedSide) -> None:
    folder = panel.folder / one.side.version / one.side.arm
    facts = {"judge": panel.options.identity, "mode": panel.options.mode, **one.as_json()}
    write_parquet(folder / ROWS, one.judged.rows)
    write_json(folder / FACTS, facts)
    plots = []
    for name, scores in one.judged.dimensions.items():
        shown = [Bar(score, n, None, f"{n:,}") for score, n in scores.distribution.items()]
        drawn = svg(bars({"": shown}), "answers by score")
        plots.append({"title": name.replace("_", " "), "svg": drawn})
    page = render("judged.html.j2", title=f"{one.side} as judged", facts=facts, plots=plots)
    write_text(folder / PAGE, page)
