"""The unit tests of the scripts: each ``tests/js/*.test.mjs`` runs under ``node --test``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from worker import assets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The Node that also builds the pages."""
    found = assets.find_node() or assets.installed_node(ROOT / ".venv")
    if found is None:
        pytest.skip("there is no Node of 20 or newer with npm: install it, or let ./studio install its own")
    return found.node


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "js").glob("*.test.mjs")), ids=lambda path: path.name)
def test_script(node: list[str], path: Path) -> None:
    result = subprocess.run([*node, "--test", "--test-reporter=spec", path], cwd=ROOT, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    if result.returncode:
        pytest.fail(result.stdout, pytrace=False)
