"""Write one arm's report: `report.json`, `report.html` and `samples.parquet`.

`report.json` holds `format`, `kind` (`arm`, or `initial` for the base model) and:

    version, arm, stage, selector, seed, budget, model, fingerprint, template
    subset      {size, pool, gain}: how many records were chosen, from how many, and the sum of the
                gains or null
    asked       {training: {...}, evaluation: {...}, ...}: the requested options
    objective   facts about the selector's objective
    training    the training log without its curves, or null
    evaluation  {metrics, counts, details, seconds} of this arm
    beside      {initial, random, full: {metrics, differences}, or null if not evaluated yet};
                differences: {metric: {mean, se, improvement, records}}, this arm minus the other
    lineage     name -> hash or id of an artifact that the arm was made from
    seconds     name -> wall time
    forgetting  null, or {heldout: [version, ...], rows: [{model, arm, metrics: {version: {...} or
                null}}], changes: {version: {metric: {mean, se, improvement, records}}}}: the models
                of successive versions on all their held-out sets, and this model minus the model of
                each earlier version (`evaluation.forgetting`)

The functions take plain data and do not import Dagster or MLflow. `render` makes every page of the
product: self-contained HTML, with all text escaped, and Markdown.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.formatting import ABSENT, number, option_text, verdict, with_error
from delift_pipeline.core.home import BASE_MODEL
from delift_pipeline.core.plots import Bar, draw_bars, draw_curves, series, svg
from delift_pipeline.evaluation.forgetting import Forgetting
from delift_pipeline.evaluation.options import METRICS, MetricName
from delift_pipeline.evaluation.result import (
    Difference,
    Evaluation,
    difference_cell,
    differences,
    metric_text,
    write_evaluation,
)
from delift_pipeline.training.log import TrainingLog

FORMAT = 1
PAGE = "report.html"
SAMPLE_LIMIT, TEXT_LIMIT = 20, 600
HEADLINE: tuple[MetricName, ...] = ("answer_loss", "exact_match")
HERE = Path(__file__).parent
_LONGEST_CODE = 80
_UNSAFE = re.compile(r"[\x00-\x1f\x7f`|<>\u2028\u2029]+")

Models = Sequence[tuple[str, Mapping[str, float], str]]
"""For each model its name, its metrics, and the colour of its bars (`plots.COLOURS`)."""
Gaps = Mapping[str, Mapping[MetricName, Difference]]
"""Another model's name -> the arm minus that model, by metric."""


@dataclass(frozen=True)
class ArmReport:
    """Everything that a report says about one arm.

    Attributes:
        arm: Name of the arm, `stage.selector[-variant]`.
        model: The model's name, never a path.
        template: The name of the prompt template of scoring, training and evaluation.
        pool: How many records the selector could choose from.
        subset: The chosen records in rank order: `record_id`, and `gain` if the selector has gains.
        beside: Evaluations of the same version and stage by name (`initial`, `random`, `full`);
            None if there is none yet.
        options_by_part: The requested options of the selector, of training and of evaluation.
        lineage: Hash or id of each artifact that the arm was made from, by name.
        diagnostics: Comparisons of the subset with its pool and with random subsets, by name.
        suspects: Suspected wrong records: trust, selected, text, and the neighbours that disagree.
            Each neighbour has its text, the tokens of the record's answer and their gains after it.
        balance: Shares of pool and subset by group, from `selection.diagnostics.balance`.
    """

    version: str
    arm: str
    stage: str
    selector: str
    seed: int
    budget: float | int | str
    model: str
    fingerprint: str
    pool: int
    subset: pl.DataFrame
    evaluation: Evaluation
    beside: Mapping[str, Evaluation | None] = field(default_factory=dict)
    options_by_part: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingLog | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float | None] = field(default_factory=dict)
    suspects: list[dict[str, Any]] = field(default_factory=list)
    balance: list[dict[str, Any]] = field(default_factory=list)
    forgetting: Forgetting | None = None
    template: str = ""


def write_report(folder: Path, report: ArmReport) -> dict[str, Any]:
    """Write an arm's report into an existing folder, and return the content of `report.json`."""
    gaps = {
        name: differences(report.evaluation, other)
        for name, other in report.beside.items()
        if other is not None
    }
    subset = report.subset
    gains = subset["gain"].drop_nulls().to_list() if "gain" in subset.columns else []
    facts = _facts(report, gaps, gains)
    write_evaluation(folder, report.evaluation, facts)
    write_text(folder / PAGE, _page(report, facts, gaps, gains))
    return facts | {"evaluation": report.evaluation.as_json()}


def _facts(report: ArmReport, gaps: Gaps, gains: list[float]) -> dict[str, Any]:
    """Return the content of `report.json` without the evaluation itself."""
    names = ("version", "arm", "stage", "selector", "seed", "budget", "model", "fingerprint")
    names += ("template",)
    return {
        "format": FORMAT,
        "kind": "arm",
        **{name: getattr(report, name) for name in names},
        "subset": {
            "size": report.subset.height,
            "pool": report.pool,
            "gain": sum(gains) if gains else None,
        },
        "asked": {group: dict(options) for group, options in report.options_by_part.items()},
        "objective": dict(report.objective),
        "diagnostics": dict(report.diagnostics),
        "training": report.training.summary() if report.training else None,
        "beside": {
            name: {
                "metrics": other.metrics,
                "differences": {metric: asdict(gap) for metric, gap in gaps[name].items()},
            }
            if other
            else None
            for name, other in report.beside.items()
        },
        "forgetting": report.forgetting.as_json() if report.forgetting else None,
        "lineage": dict(report.lineage),
        "seconds": dict(report.seconds),
    }


def _page(report: ArmReport, facts: dict[str, Any], gaps: Gaps, gains: list[float]) -> str:
    """Return the report as one HTML page."""
    models = [("this arm", report.evaluation.metrics, "chosen")]
    models += [(name, e.metrics, "plain") for name, e in report.beside.items() if e is not None]
    knee = report.objective.get("knee")
    marked = None if knee is None else (int(knee), f"knee, {int(knee):,} records")
    losses = report.training.losses if report.training else []
    measured = [name for name in METRICS if name in report.evaluation.metrics]
    forgetting = report.forgetting
    return render(
        "report.html.j2",
        title=f"{report.arm} on {report.version}",
        report=facts,
        counts=report.evaluation.counts,
        training=facts["training"],
        metrics={name: METRICS[name] for name in measured},
        headline=HEADLINE,
        compared={"this arm": report.evaluation, **report.beside},
        gaps=gaps,
        plots=metric_plots(models, measured),
        gain_plot=_line_plot(gains, "records chosen", "marginal gain", marked),
        loss_plot=_line_plot(losses, "step", "loss (nats per answer token)"),
        sample_rows=_sample_rows(report),
        diagnostics={k: v for k, v in report.diagnostics.items() if v is not None},
        suspects=report.suspects,
        balance=report.balance,
        heldout_sets=list(forgetting.heldout) if forgetting else [],
        forgetting=forgetting.page_tables() if forgetting else [],
    )


def metric_bars(models: Models, names: Iterable[MetricName] = METRICS) -> dict[str, list[Bar]]:
    """Return bars for each metric that any model was measured in, by the metric's title."""
    panels = {
        f"{METRICS[name].title}, {METRICS[name].better} is better": [
            Bar(model, metrics[name], metrics.get(f"{name}_se"), metric_text(metrics, name), colour)
            for model, metrics, colour in models
            if name in metrics
        ]
        for name in names
    }
    return {title: group for title, group in panels.items() if group}


def metric_plots(models: Models, names: Iterable[MetricName]) -> list[dict[str, Any]]:
    """Return the plots of `metric_bars` for a page, each as inline SVG with its title."""
    return [
        {"title": title, "svg": svg(draw_bars({"": group}), title)}
        for title, group in metric_bars(models, names).items()
    ]


def _line_plot(
    values: list[float], x_title: str, y_title: str, marked: tuple[int, str] | None = None
) -> str:
    """Return a plot of values by their index, with zero on the axis; empty without values."""
    if not values:
        return ""
    figure = draw_curves(series(values), x_title, y_title, marked=marked, from_zero=True)
    return svg(figure, f"{y_title} by {x_title}")


def _sample_rows(report: ArmReport) -> list[dict[str, Any]]:
    """Return evenly spaced samples with the base model's and the arm's answers."""
    samples = report.evaluation.samples
    initial = report.beside.get(BASE_MODEL)
    base = {} if initial is None else dict(initial.samples.select("record_id", "generated").rows())
    count = min(SAMPLE_LIMIT, samples.height)
    chosen = [i * samples.height // count for i in range(count)]
    return [
        {
            "prompt": _shorten("\n".join(filter(None, (row["instruction"], row["input"])))),
            "reference": _shorten(row["reference"]),
            "base": _shorten(base.get(row["record_id"])),
            "generated": _shorten(row["generated"]),
            "exact": row.get("exact_match") == 1.0,
        }
        for row in samples[chosen].iter_rows(named=True)
    ]


def _shorten(text: str | None) -> str:
    if text is None:
        return ABSENT
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} …"


def render(template: str, folder: Path = HERE, **values: Any) -> str:
    """Render a template in `folder`; a name without a value is an error.

    Markdown (`.md.j2`) is not escaped, so text from data needs the filter `code` or `quoted`.
    """
    environment = _environment(folder, template.endswith(".html.j2"))
    return environment.get_template(template).render(**values)


@cache
def _environment(folder: Path, escape: bool) -> Environment:
    """Return the environment of a folder's templates. It keeps each template once compiled."""
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        signed=partial(number, sign=True),
        option=option_text,
        mean=with_error,
        plain_mean=partial(with_error, digits=4, ascii_only=True),
        metric=metric_text,
        difference=difference_cell,
        verdict=verdict,
        code=_code,
        quoted=json.dumps,
        count="{:,}".format,
    )
    return environment


def _code(text: str) -> str:
    """Return text from a user's data, made safe between back-ticks in a table's cell."""
    plain = _UNSAFE.sub(" ", str(text)).strip()
    return plain if len(plain) <= _LONGEST_CODE else f"{plain[:_LONGEST_CODE]}..."
