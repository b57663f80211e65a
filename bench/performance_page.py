"""docs/performance.md: its tables are made of the rows, between marks, and are checked against them.

<!-- table: engine -->

| ...

<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rgalign.bench.report_tables import TABLES, fullest, none_yet
from rgalign.bench.result_rows import Row
from rgalign.bench.rows import ROOT
from rgalign.errors import DataError

PAGE = ROOT / "docs" / "performance.md"
MARKED = re.compile(r"<!-- table: (\w+) -->\n(.*?)\n?<!-- end -->", re.DOTALL)
OPENING = re.compile(r"<!-- table: ")


def rewritten(page: str, rows: Sequence[Row]) -> str:
    """The page with every table made anew.

    Raises:
        DataError: an unknown table, a mark without its end, or no table at all.
    """
    made = dict(tables(page, rows))
    return MARKED.sub(lambda found: f"<!-- table: {found[1]} -->\n{made[found[1]]}\n<!-- end -->", page)


def checked(page: str, rows: Sequence[Row]) -> list[str]:
    """Names of the tables that say other than the rows; raises as ``rewritten`` does."""
    made = dict(tables(page, rows))
    return [found[1] for found in MARKED.finditer(page) if found[2] != made[found[1]]]


def tables(page: str, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    names = [found[1] for found in MARKED.finditer(page)]
    if not names or len(names) != len(OPENING.findall(page)):
        required = "<!-- table: NAME --> ... <!-- end -->, at least once and each with its end"
        raise DataError(where=str(PAGE), required=required, received=f"{len(names)} whole ones")
    for name in names:
        if name not in TABLES:
            raise DataError(where=str(PAGE), required=f"a table of {', '.join(TABLES)}", received=name)
        made = fullest(name, rows)
        yield name, f"\n{none_yet(name) if made is None else made.markdown()}\n"
