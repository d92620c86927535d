"""What a visitor of the repository relies on: the lock, the layout, the README, the compose file, clean words."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def tracked() -> list[Path]:
    """Files in git; in a copy without git everything that is not ignored by name."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, check=True).stdout
        return [ROOT / name for name in os.fsdecode(listed).split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "node_modules", "__pycache__", "data", "runs", "cache", ".git"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.relative_to(ROOT).parts)]


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_the_lock_has_plain_versions_only() -> None:
    for line in requirement_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; .+)?", line), \
            f"{line!r}: want name==version, without hashes, local versions, paths or extras"
        Requirement(line)  # the marker parses
    assert "torch==2.13.0" in requirement_lines()


def test_the_lock_holds_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {}
    for line in requirement_lines():
        requirement = Requirement(line)
        locked[_key(requirement.name)] = next(iter(requirement.specifier)).version
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        assert _key(wanted.name) in locked, f"requirements.txt lacks {wanted.name}"
        version = locked[_key(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted} but {version} is locked"
    assert any(Requirement(r).name == "flash-attn" for r in project["optional-dependencies"]["gpu"])


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_layout_stands() -> None:
    for name in ("minimind", "app/core", "worker", "templates", "static", "migrations", "tests", "docs", "benchmarks"):
        assert (ROOT / name).is_dir(), f"{name}/ is missing"
    for name in ("README.md", "train.py", "pyproject.toml", "requirements.txt", "package.json", "package-lock.json",
                 "docker-compose.yml", "Dockerfile", "docs/architecture.md"):
        assert (ROOT / name).is_file(), f"{name} is missing"
    for name in ("studio", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), f"{name} has no run bit"


def test_the_readme_names_commands_and_files_that_exist() -> None:
    from worker.cli.__main__ import COMMANDS

    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"\./studio ([a-z]+)", text))
    assert {"up", "test", "demo"} <= commands <= set(COMMANDS)
    for name in re.findall(r"^([a-z][\w./-]*/?)  +\S", text, re.MULTILINE):  # the annotated tree
        assert (ROOT / name).exists(), f"README.md speaks of {name}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), f"README.md links to {link}"


def test_the_usage_names_every_command_and_each_has_help() -> None:
    from worker.cli.__main__ import COMMANDS, usage

    modules = {p.stem for p in (ROOT / "worker" / "cli").glob("[!_]*.py")}
    assert set(COMMANDS) <= modules
    for name in COMMANDS:
        assert name in usage()
        assert ast.get_docstring(ast.parse((ROOT / "worker" / "cli" / f"{name}.py").read_text()))


def test_compose_describes_the_roles() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {"web", "worker", "inference", "postgres", "valkey"} <= set(services)
    for name in ("web", "worker", "inference"):
        assert services[name]["init"] is True
        assert services[name]["environment"]["STUDIO_DATABASE_URL"].startswith("postgresql://")
        assert any(str(v).startswith("studio-data:") for v in services[name]["volumes"])
    assert "shm_size" in services["worker"] and "stop_grace_period" in services["worker"]
    for port in services["web"]["ports"]:
        assert str(port).startswith("127.0.0.1:"), "only this machine, unless the owner decides otherwise"


def test_the_npm_lock_names_no_registry() -> None:
    assert not re.search(r'"resolved": *"https?://', (ROOT / "package-lock.json").read_text())


@pytest.mark.parametrize("pattern, why", [
    (r"shell *= *True", "no shell: pass a list of arguments"),
    (r"weights_only *= *False", "no pickle from files"),
    (r"trust_remote_code *= *True", "no code from models"),
    (r"except[^:\n]*: *pass\b", "say what is ignored and why"),
    (r"\bimport pickle\b|\bimport dill\b|\bimport joblib\b", "no pickle from files"),
])
def test_python_without(pattern: str, why: str) -> None:
    for path in tracked():
        if path.suffix == ".py" and path != Path(__file__).resolve():
            hit = re.search(pattern, path.read_text())
            assert not hit, f"{path.relative_to(ROOT)}: {hit[0]!r}: {why}"


def test_nothing_of_a_developers_machine_is_in_the_text() -> None:
    """No home directories, no absolute paths of a checkout."""
    private = re.compile(r"/(?:home|Users)/[a-z][\w-]*/|" + re.escape(str(ROOT)) + r"\b")
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".js", ".css", ".html", ".txt", ""}:
            hit = private.search(path.read_text(errors="replace"))
            assert not hit, f"{path.relative_to(ROOT)} contains {hit[0]!r}"


def test_a_changed_lock_is_seen_and_an_unchanged_one_costs_nothing(tmp_path: Path) -> None:
    """``./studio`` in a copy of the checkout with a stand-in for Python: installs once, then starts at once."""
    (tmp_path / "worker").mkdir()
    shutil.copy(ROOT / "studio", tmp_path / "studio")
    (tmp_path / "requirements.txt").write_text("one==1\n")
    (tmp_path / "worker" / "bootstrap.py").write_text(
        "import os, pathlib, shutil, sys\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "(root / '.venv/bin').mkdir(parents=True, exist_ok=True)\n"
        "python = root / '.venv/bin/python'\n"
        "python.write_text('#!/bin/sh\\necho ran \"$@\"\\n'); python.chmod(0o755)\n"
        "shutil.copy(root / 'requirements.txt', root / '.venv/requirements.stamp')\n"
        "print('installed', flush=True)\n"
        "os.execv(root / 'studio', [str(root / 'studio'), *sys.argv[2:]])\n")

    def start() -> list[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("STUDIO_")}
        return subprocess.run([tmp_path / "studio", "up", "--data_dir", "a b"], env=env, capture_output=True, text=True,
                              check=True, timeout=30).stdout.splitlines()

    assert start() == ["installed", "ran -P -m worker.cli up --data_dir a b"]
    assert start() == ["ran -P -m worker.cli up --data_dir a b"]
    (tmp_path / "requirements.txt").write_text("one==2\n")
    assert start()[0] == "installed"


def test_a_missing_interpreter_is_one_sentence(tmp_path: Path) -> None:
    result = subprocess.run([ROOT / "studio", "doctor"], capture_output=True, text=True, timeout=30,
                            env={**os.environ, "STUDIO_PYTHON": str(tmp_path / "python")})
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "is not a Python 3.11 or newer" in result.stderr
