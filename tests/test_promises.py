"""docs/promises.md: each test that it names exists and runs where it says; each way to break a promise applies."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.chaos.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "promises.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`( †)?", TEXT)))
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", TEXT, re.MULTILINE)


@cache
def functions(path: Path) -> dict[str, list[str]]:
    """The functions of a file, with the names of their decorators."""
    tree = ast.parse(path.read_text())
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name: [ast.unparse(decorator) for decorator in node.decorator_list] for node in found}


def decorators(test: str) -> list[str]:
    file, name = test.split("::")
    assert (ROOT / file).exists(), f"{file} is gone; promises.md names {test}"
    known = functions(ROOT / file)
    assert name in known, f"{test} is gone; name the test that holds the promise now, or withdraw the promise"
    return known[name]


@pytest.mark.parametrize(("test", "dagger"), NAMED, ids=[name for name, _ in NAMED])
def test_every_test_that_is_named_exists_and_runs_where_the_page_says(test: str, dagger: str) -> None:
    given = decorators(test)
    assert test.split("::")[1].startswith("test_")
    in_the_long_run_only = "long_only" in given
    assert in_the_long_run_only is bool(dagger), f"{test}: † means that only `make chaos` runs it"
    assert not any(mark in text for text in given for mark in ("mark.skip(", "mark.xfail")), f"{test} is switched off"


def test_every_promise_has_a_number_and_a_test_that_make_test_runs() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 25  # those of the reliability notes
    for number, promise, tests in ROWS:
        in_the_suite = [name for name, dagger in re.findall(r"`(tests/[^`]+)`( †)?", tests) if not dagger]
        assert in_the_suite, f"promise {number} ({promise}) has no test in `make test`"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_way_to_break_a_promise_still_applies(mutation: Mutation) -> None:
    """If this fails after a change of the code: carry the change over to tests/chaos/mutations.py."""
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1, f"{mutation.file} has changed"
    assert mutation.old != mutation.new
    assert "long_only" not in decorators(mutation.test)
    assert f"| {mutation.name} | `{mutation.test}` |" in TEXT


def test_the_page_lists_no_way_that_is_not_tried() -> None:
    table = TEXT.split("## Broken on purpose")[1].split("## ")[0]
    assert table.count("`tests/") == len(MUTATIONS)
