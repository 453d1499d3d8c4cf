"""The table of failures in docs/serving.md and the tests that make each of them happen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nydus_erofs
from tests.kit import failures

TESTS = Path(__file__).parents[2]


def marked() -> Iterator[str]:
    """Every row that a test is marked with."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.failure":
                    (row,) = mark.args
                    assert isinstance(row, ast.Constant)
                    yield str(row.value)


def test_each_row_has_a_test_and_each_such_test_a_row() -> None:
    if not failures.PAGE.exists():
        pytest.skip("the documents are not here: this runs in a checkout")
    assert set(marked()) == set(failures.rows())


def test_the_log_has_the_lines_that_it_names() -> None:
    if not failures.PAGE.exists():
        pytest.skip("the documents are not here: this runs in a checkout")
    sources = Path(nydus_erofs.__path__[0]) / "fscache" / "keeper"
    keeper = "".join(path.read_text() for path in sources.rglob("*.py"))
    for lines in failures.rows().values():
        for event in lines:
            assert f'"{event}"' in keeper, event
