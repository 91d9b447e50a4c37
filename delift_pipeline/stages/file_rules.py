"""Rules on the records of a file: pins and exclusions by file, quotas on any column."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from delift_pipeline.records.read import read_records
from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.constraints import Tracker
from delift_pipeline.selection.rules import RuleOptions, Rules, records_named


def rules_of_files(
    rules: RuleOptions, pool: pl.DataFrame, mapping: Mapping[str, str] | None
) -> Rules:
    """Rules in record_ids, where a pin or an exclusion may also be a file of records.

    What is excluded by a file need not be in the pool: such a file often holds more.

    Args:
        rules: As asked for.
        pool: The records chosen from.
        mapping: Column by field, for files with columns of other names.

    Raises:
        Refused: a file cannot be read, or a record pinned in, or excluded by id, is not there.
    """
    (pin_files, pin), (exclude_files, exclude) = map(_split, (rules.pin, rules.exclude))
    named = rules.model_copy(update={"pin": pin, "exclude": exclude}).rules(pool)
    pinned = _records(pin_files, mapping)
    known = set(pool["record_id"])
    banned = [record for record in _records(exclude_files, mapping) if record in known]
    return Rules(
        tuple(dict.fromkeys((*named.pin, *records_named(pool, pinned, "pin")))),
        tuple(dict.fromkeys((*named.ban, *banned))),
        named.quotas,
    )


def _split(given: Sequence[str]) -> tuple[list[Path], tuple[str, ...]]:
    """Those that are files, and the ids."""
    files = [Path(one) for one in given if Path(one).is_file()]
    return files, tuple(one for one in given if not Path(one).is_file())


def _records(files: Sequence[Path], mapping: Mapping[str, str] | None) -> list[str]:
    read = [read_records(file, mapping=mapping, all_mapped=False) for file in files]
    return [record for one in read for record in one.frame["record_id"]]


def refuse_infeasible(
    rules: Rules, pool: pl.DataFrame, budget: Budget, unscorable: Collection[str] = ()
) -> None:
    """Refuse rules that no subset of the pool keeps to, before anything is scored.

    Args:
        rules: The rules.
        pool: The records chosen from.
        budget: What may be picked of them.
        unscorable: record_ids that cannot be picked, since they cannot be scored.

    Raises:
        Refused: the sentence says which quota or pin, and what is there.
    """
    ids = tuple(record for record in pool["record_id"] if record not in unscorable)
    Tracker(rules.resolved(pool, ids, budget), len(ids), budget.count)
