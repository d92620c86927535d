"""``.venv`` is made once, made again after an interrupted installation, and its failures are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import bootstrap, steps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose lock asks for nothing, with its environment."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "requirements.txt").write_text("# nothing\n")
    bootstrap.install(root / ".venv", root / "requirements.txt")
    return root


def test_an_environment_is_current_until_the_lock_changes(made: Path) -> None:
    environment, requirements = made / ".venv", made / "requirements.txt"
    assert bootstrap.is_current(environment, requirements)
    assert not (environment / "installing").exists()
    requirements.write_text("# something else\n")
    assert not bootstrap.is_current(environment, requirements)
    bootstrap.install(environment, requirements)
    assert bootstrap.is_current(environment, requirements)


def test_an_interrupted_installation_is_made_again(made: Path) -> None:
    environment = made / ".venv"
    (environment / "installing").touch()
    (environment / "half-installed").touch()
    bootstrap.install(environment, made / "requirements.txt")
    assert not (environment / "half-installed").exists()
    assert bootstrap.is_current(environment, made / "requirements.txt")


def test_a_package_that_is_not_there_is_one_sentence(made: Path, capsys: pytest.CaptureFixture) -> None:
    requirements = made / "missing.txt"
    requirements.write_text(f"nothing @ file://{made}/no-such-package-1.0.tar.gz\n")
    with pytest.raises(bootstrap.BootstrapError, match="packages could not be installed.*install.log"):
        bootstrap.install(made / ".venv", requirements)
    assert not bootstrap.is_current(made / ".venv", requirements)


def test_progress_shows_what_pip_does(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    log.write_text("Collecting torch==2.13.0\n  Downloading torch (180 MB)\nSomething else\n")
    assert steps._latest_step(log) == "Downloading torch (180 MB)"
