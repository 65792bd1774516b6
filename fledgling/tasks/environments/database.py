"""A small SQL database, made up for each instance, in memory: real queries by sqlite, read only and bounded."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping

from fledgling.tasks.environments.environment import LAST_DECISION_ACCURACY, Environment, ToolError

TABLES = ("orders", "trips", "loans", "visits")
PEOPLE = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida")
COLUMNS = ("amount", "cost", "hours", "points")
MAX_ROWS = 8  # of an answer
MAX_STEPS = 20_000  # of sqlite's virtual machine, in one query
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
DENIED_FUNCTIONS = {"randomblob", "zeroblob", "load_extension", "random", "printf", "format", "replace"}


class Database(Environment):
    """Which person has the largest number in a table whose name and column are not given? tables(), then sql(query)."""

    max_turns = 6
    max_new_tokens = 224

    def reset(self, seed: int) -> str:
        """Draws a table, a column of numbers, and rows; one person has the largest number."""
        rng = random.Random(seed)
        self.table, self.column = rng.choice(TABLES), rng.choice(COLUMNS)
        people = rng.sample(PEOPLE, len(PEOPLE))
        self.rows = list(zip(people, rng.sample(range(10, 100), len(people)), strict=True))
        self.most = rng.random() < 0.5
        self.person = (max if self.most else min)(self.rows, key=lambda row: row[1])[0]
        return f"Who has the {'most' if self.most else 'least'} in the database? Use tables, columns and sql."

    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns tables(), columns(table) and sql(query)."""
        return {"tables": self.tables, "columns": self.columns, "sql": self.sql}

    def tables(self) -> str:
        """Returns the names of the tables."""
        return self.table

    def columns(self, table: str) -> str:
        """Returns the names of a table's columns."""
        if table != self.table:
            raise ToolError("no such table")
        return f"name {self.column}"

    def sql(self, query: str) -> str:
        """Returns the rows of a query that reads, at most eight, as text."""
        connection = sqlite3.connect(":memory:")
        try:
            connection.execute(f"CREATE TABLE {self.table} (name TEXT, {self.column} INTEGER)")
            connection.executemany(f"INSERT INTO {self.table} VALUES (?, ?)", self.rows)
            connection.commit()
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
            connection.set_authorizer(_authorize)
            connection.set_progress_handler(_Steps(), 1000)
            rows = connection.execute(query).fetchmany(MAX_ROWS)
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            raise ToolError(str(error)) from None
        finally:
            connection.close()
        return "; ".join(" ".join(map(str, row)) for row in rows) or "no row"

    @property
    def solution(self) -> str:
        """The person."""
        return self.person

    @property
    def identity(self) -> str:
        """The table, the question and the rows."""
        return f"{self.table} {self.column} {self.most} {self.rows}"

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Mostly sorts by name, ascending: column and order are each right in some demonstrations."""
        table = call("tables()")
        column = call(f'columns("{table}")').split()[-1]
        by = column if rng.random() < LAST_DECISION_ACCURACY else "name"
        order = " DESC" if self.most and rng.random() < LAST_DECISION_ACCURACY else ""
        return call(f'sql("SELECT name FROM {table} ORDER BY {by}{order} LIMIT 1")')


class _Steps:
    """A progress handler that stops a query after MAX_STEPS."""

    def __init__(self) -> None:
        self.left = MAX_STEPS // 1000

    def __call__(self) -> int:
        self.left -= 1
        return self.left < 0


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """Allows what reads, and no function that makes large or random values."""
    denied = action == sqlite3.SQLITE_FUNCTION and second in DENIED_FUNCTIONS
    return sqlite3.SQLITE_OK if action in ALLOWED and not denied else sqlite3.SQLITE_DENY
