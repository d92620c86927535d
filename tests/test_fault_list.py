"""Every fault of docs/faults.md has a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIST = (ROOT / "docs/faults.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py):(\w+)`", LIST)))


def test_no_fault_is_without_a_test() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in LIST.splitlines() if line.startswith("| ")]
    assert [int(row[0]) for row in rows if row[0].isdigit()] == list(range(1, 21))
    assert all(re.fullmatch(r"`tests/[\w/]+\.py:test_\w+`", row[2]) for row in rows[2:]), rows


@pytest.mark.parametrize("file, name", NAMED)
def test_what_the_list_names_is_there(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file, name", NAMED)
def test_slow_is_said(file: str, name: str) -> None:
    """A row says ``slow`` where its test, or the part of it that the row is about, runs with ``--all`` alone."""
    tree = ast.parse((ROOT / file).read_text())
    [test] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    is_slow = any(ast.unparse(d) == "pytest.mark.slow" for d in test.decorator_list)
    rows = [line for line in LIST.splitlines() if f"`{file}:{name}`" in line and line.startswith("| ")]
    if is_slow and rows:
        assert all(row.rstrip().endswith("slow |") for row in rows), rows
