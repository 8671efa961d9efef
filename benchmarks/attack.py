"""Attacks and faults, tried and held: every test that is marked `attack`, counted by its area.

python -m benchmarks.attack            prints the table of docs/security.md
python -m benchmarks.attack --write    and puts it there
python -m benchmarks.attack --fast     leaves out what is marked slow, as the kills
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- attacks -->\n", "<!-- /attacks -->\n"


class Tally:
    """Counts what was tried and what held.

    A test that tries several times says so with `record_property("attacks", 40)`.
    """

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.areas: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if marker := item.get_closest_marker("attack"):
                self.areas[item.nodeid] = str(marker.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        area = self.areas.get(report.nodeid)
        if area is None:
            return
        count = next((int(str(value)) for name, value in report.user_properties if name == "attacks"), 1)
        if report.skipped:
            self.skipped[area] += 1
        elif report.when == "call" or report.failed:
            self.tried[area] += count
            self.held[area] += count * report.passed

    def rows(self) -> Iterator[str]:
        """The table, a line each."""
        yield "| area | tried | held | not tried here |\n|---|---|---|---|\n"
        for area in sorted(self.tried | self.skipped):
            yield f"| {area} | {self.tried[area]} | {self.held[area]} | {self.skipped[area] or ''} |\n"
        yield (f"| **all** | **{self.tried.total()}** | **{self.held.total()}** | "
               f"{self.skipped.total() or ''} |\n")


def main() -> int:
    """Runs the tests and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    tally = Tally()
    marked = "attack and not gpu" + " and not slow" * options.fast
    code = int(pytest.main(["-q", "-m", marked, str(PAGE.parents[1] / "tests")], plugins=[tally]))
    table = "".join(tally.rows())
    print(table)
    if options.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        said = f"{date.today():%-d %B %Y}, `python -m benchmarks.attack --write`:\n\n"
        PAGE.write_text(before + BEGIN + said + table + END + rest.split(END)[1], encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
