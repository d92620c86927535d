from __future__ import annotations

import pytest

from tests import database_rig


@pytest.fixture(params=database_rig.backends())
def database(request, tmp_path, monkeypatch):
    """A new database on the backend that the environment names; its URL."""
    yield from database_rig.make_database(request.param, tmp_path, monkeypatch)
