"""What the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs/core.md").read_text())))


@pytest.mark.parametrize("file, name", NAMED)
def test_the_walk_through_the_core_names_what_there_is(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_walk_has_many_stations() -> None:
    assert len(NAMED) > 25
