"""Plan an experiment for `delift bench quality`, run it, and write and log its table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import experiments
from benchmarks.cells import JudgeConfig
from benchmarks.contenders import known_names
from benchmarks.experiments import Experiment, ExperimentRequest, Unit
from benchmarks.page import markdown_tables, write_page
from delift_pipeline.bench.quality import run_quality, table_path
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.output import write_output
from delift_pipeline.core.progress import Progress
from delift_pipeline.selection.options import STAGES

MARKDOWN_METRICS = ("exact_match", "largest", "conditional")
"""Prefixes of the metrics in the Markdown tables."""


@dataclass(frozen=True)
class Plan:
    """An experiment, the user's request, and what will be measured."""

    experiment: Experiment
    request: ExperimentRequest
    units: Sequence[Unit]

    def run(
        self, out: Path, progress: Progress, workers: int, *, markdown: Path | None, track: bool
    ) -> tuple[dict[str, Any], Path]:
        """Measure what is missing, and write the table and its page.

        Args:
            out: The folder of the results; an interrupted experiment continues from it.
            progress: Shows how many cells are done.
            workers: Number of processes, with one thread each.
            markdown: A file to which the tables are also written as Markdown, or None.
            track: Whether the table is logged to MLflow, in the home of `out`.

        Returns:
            The table of `run_quality`, with `mlflow_run` if it is logged, and the page's path.
        """
        name, notes = self.experiment.name, self.experiment.notes(self.request)
        table = run_quality(out, name, self.units, progress, workers, notes)
        page = write_page(out, self.experiment, table)
        if markdown is not None:
            write_output(markdown, markdown_tables(table, MARKDOWN_METRICS).encode("utf-8"))
        if track:
            from benchmarks.tracking import track_table

            table["mlflow_run"] = track_table(out, table, [page, table_path(out, name)])
        return table, page


def plan(
    name: str,
    *,
    only: Sequence[str] = (),
    seeds: tuple[int, ...] = (),
    quick: bool = False,
    model: str,
    judge: str | None = None,
    endpoint: str | None = None,
    **how: str,
) -> Plan:
    """Plan an experiment.

    Args:
        name: Name of the experiment.
        only: Stages and contenders; empty for the experiment's own.
        seeds: Seeds of the pools; empty for the experiment's own.
        quick: Whether only two pools and one budget are measured.
        model: The model that the experiment `tuning` trains.
        judge: Name or folder of the judge of generated answers, or None.
        endpoint: The judge's address; None if its model runs in this process.
        how: The judge's other options.

    Raises:
        InputError: the experiment, stage or contender is unknown, an endpoint is given without a
            judge, a setting is out of range, or the experiment does not support the request.
    """
    chosen = experiments.experiment(name)
    if judge is None and endpoint is not None:
        reason = "--endpoint needs a judge. Name the endpoint's judge with --judge"
        raise InputError(Fault(reason, field="--endpoint"))
    judge_config = None if judge is None else JudgeConfig.from_name(judge, endpoint, **how)
    known = (*STAGES, *known_names())
    if unknown := [one for one in only if one not in known]:
        reason = f"{unknown[0]!r} is not a stage or a selector. Choose from: {', '.join(known)}"
        raise InputError(Fault(reason, field="--only"))
    request = ExperimentRequest(
        stages=tuple(stage for stage in STAGES if stage in only),
        seeds=seeds,
        names=tuple(one for one in only if one not in STAGES),
        quick=quick,
        model=model,
        judge=judge_config,
    )
    return Plan(chosen, request, experiments.units_of(chosen, request))
