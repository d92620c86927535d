"""Every text of the pages exists in every language, with the same placeholders."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("babel")


@pytest.fixture(scope="module")
def update():
    spec = importlib.util.spec_from_file_location("locale_update", ROOT / "locale" / "update.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(update):
    return update.collect()


def test_texts_are_collected_from_everywhere(source) -> None:
    for text in ("Start training", "Curves", "completed", "Peak learning rate."):
        assert source.get(text) is not None, text
    plural = source.get("%(num)s minute")
    assert plural is not None and plural.id == ("%(num)s minute", "%(num)s minutes")


def test_no_text_hides_from_the_collector() -> None:
    """A call inside a template literal is not seen by it: the text would stay English for everybody."""
    for path in (ROOT / "static" / "js").rglob("*.js"):
        hidden = re.findall(r"\$\{tn?\(\s*[\"']", path.read_text())
        assert not hidden, f"{path.name}: {hidden}"


@pytest.mark.parametrize("language", ["zh", "pt"])
def test_a_catalogue_is_complete(update, source, language: str) -> None:
    catalog = update.load(language, update.po_files()[language])
    missing = update.problems(source, catalog)
    assert not missing, "\n".join([f"{language}: run locale/update.py, then translate:", *missing[:20]])
    assert not [m.id for m in catalog if m.id and m.fuzzy]
