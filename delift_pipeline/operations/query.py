"""Read-only SQL over everything stored in a home."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.operations.catalog import refresh_catalog
from delift_pipeline.operations.catalog_views import VIEWS

if TYPE_CHECKING:
    import duckdb

# A query can read nothing but the catalog and write nothing: no files, extensions or Python
# variables. `lock_configuration` prevents that a query changes these settings.
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}


@dataclass(frozen=True)
class Answer:
    """The result of a query, and the artifacts whose pairs it needs but the catalog lacks."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    left_out: list[str]


def run_query(home: Home, sql: str) -> Answer:
    """Bring the catalog up to date and answer one SELECT from it.

    Raises:
        InputError: the text is not one SELECT, or DuckDB refuses it; the sentence is DuckDB's.
        DeliftError: an artifact is damaged.
    """
    import duckdb

    refresh_catalog(home)
    with duckdb.connect(str(home.catalog), read_only=True, config=LOCKED) as connection:
        connection.execute("SET lock_configuration = true")
        try:
            kinds = [statement.type for statement in connection.extract_statements(sql)]
            if kinds not in ([duckdb.StatementType.SELECT], [duckdb.StatementType.EXPLAIN]):
                kinds_text = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "none"
                reason = f"a query must be one SELECT, but this is {kinds_text}"
                raise InputError(reason, field="query")
            result = connection.execute(sql)
            columns = [column[0] for column in result.description or ()]
            return Answer(columns, result.fetchall(), _left_out(connection, sql))
        except duckdb.Error as error:
            text = " ".join(str(error).split())
            if "does not exist" in text and "Table" in text:
                text = f"{text.split(' LINE ')[0]} The views are: {', '.join(VIEWS)}"
            raise InputError(text, field="query") from error


def _left_out(connection: "duckdb.DuckDBPyConnection", sql: str) -> list[str]:
    """Return which pairs a query over pairs did not see."""
    words = set(re.findall(r"\w+", sql.lower()))
    prefixes = {"utilities": "kernels/", "scores": "scores/"}
    rows = connection.execute("SELECT source, pairs FROM left_out").fetchall()
    return [
        f"{source} ({pairs:,} pairs) is too large for the catalog and is not in {view}"
        for view, prefix in prefixes.items()
        for source, pairs in rows
        if view in words and source.startswith(prefix)
    ]
