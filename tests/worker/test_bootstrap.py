"""``.venv`` is made once, made again after an interrupted installation, and its failures are one sentence."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from worker import bootstrap, steps


class Checkout:
    """A checkout whose lock asks for nothing, and whose tests' lock for one package, with its environment."""

    def __init__(self, root: Path):
        self.environment = root / ".venv"
        self.base, self.tests = root / "requirements.txt", root / "requirements-dev.txt"
        self.locks = [self.base, self.tests]
        self.wanted = f"-c requirements.txt\n--no-index\n--find-links {write_package(root / 'packages')}\nextra==1\n"
        self.base.write_text("# nothing\n")
        self.tests.write_text(self.wanted)

    def is_current(self) -> list[bool]:
        return [bootstrap.is_current(self.environment, lock) for lock in self.locks]


def write_package(folder: Path, version: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    about = f"extra-{version}.dist-info"
    with zipfile.ZipFile(folder / f"extra-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {"extra.py": "", f"{about}/RECORD": "",
                           f"{about}/METADATA": f"Metadata-Version: 2.1\nName: extra\nVersion: {version}\n",
                           f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}.items():
            wheel.writestr(name, text)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    bootstrap.install(checkout.environment, checkout.locks)
    return checkout


def test_only_the_tests_ask_for_their_packages(tmp_path: Path) -> None:
    assert [lock.name for lock in bootstrap.locks_for(tmp_path, ["up", "test"])] == ["requirements.txt"]
    assert [lock.name for lock in bootstrap.locks_for(tmp_path, [])] == ["requirements.txt"]
    assert [lock.name for lock in bootstrap.locks_for(tmp_path, ["test", "-q"])] == \
        ["requirements.txt", "requirements-dev.txt"]


def test_an_environment_is_current_until_the_lock_changes(made: Checkout) -> None:
    assert made.is_current() == [True, True]
    assert not (made.environment / "installing").exists()
    made.base.write_text("# something else\n")
    assert made.is_current() == [False, True]
    bootstrap.install(made.environment, [made.base])
    assert made.is_current() == [True, False], "what lies over it is looked at anew"


def test_where_only_the_tests_packages_cannot_be_had_the_studio_stays(made: Checkout) -> None:
    [module] = made.environment.rglob("extra.py")
    made.tests.write_text("nothing @ file:///no-such-package-1.0.tar.gz\n")
    with pytest.raises(bootstrap.BootstrapError, match="packages for the tests could not be installed.*install.log"):
        bootstrap.install(made.environment, made.locks)
    assert made.is_current() == [True, False]
    module.unlink()  # as an interruption leaves it
    write_package(made.tests.parent / "packages", 2)
    made.tests.write_text(made.wanted.replace("extra==1", "extra==2"))
    bootstrap.install(made.environment, made.locks)
    assert made.is_current() == [True, True] and module.exists()
    assert [path.name for path in made.environment.rglob("extra-*")] == ["extra-2.dist-info"], "one version, not two"


def test_an_interrupted_installation_is_made_again(made: Checkout) -> None:
    (made.environment / "installing").touch()
    (made.environment / "half-installed").touch()
    bootstrap.install(made.environment, [made.base])
    assert not (made.environment / "half-installed").exists()
    assert made.is_current() == [True, False]


def test_a_package_that_is_not_there_is_one_sentence(made: Checkout) -> None:
    made.base.write_text("nothing @ file:///no-such-package-1.0.tar.gz\n")
    with pytest.raises(bootstrap.BootstrapError, match="^packages could not be installed.*install.log"):
        bootstrap.install(made.environment, made.locks)
    assert made.is_current() == [False, False]


def test_progress_shows_what_pip_does(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    log.write_text("Collecting torch==2.13.0\n  Downloading torch (180 MB)\nSomething else\n")
    assert steps._latest_step(log) == "Downloading torch (180 MB)"
