"""What a visitor of the repository relies on: the lock, the layout, the README, the compose file, clean words."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
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


LOCK, TESTS_LOCK = "requirements.txt", "requirements-dev.txt"
#: pip and what builds packages are of the environment, not of a lock
TOOLS = {"pip", "setuptools", "wheel"}


def requirement_lines(lock: str) -> list[str]:
    lines = (ROOT / lock).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "-c "))]


def locked(*locks: str) -> dict[str, str]:
    """Versions by name, of the packages that belong on this platform."""
    requirements = [Requirement(line) for lock in locks for line in requirement_lines(lock)]
    return {_key(r.name): next(iter(r.specifier)).version for r in requirements
            if r.marker is None or r.marker.evaluate()}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("lock", [LOCK, TESTS_LOCK])
def test_a_lock_has_plain_versions_only(lock: str) -> None:
    for line in requirement_lines(lock):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; .+)?", line), \
            f"{line!r}: want name==version, without hashes, local versions, paths or extras"
        Requirement(line)  # the marker parses
    names = [_key(Requirement(line).name) for line in requirement_lines(lock)]
    assert len(names) == len(set(names)), "a package stands there twice"


def test_the_locks_are_two() -> None:
    assert "torch==2.13.0" in requirement_lines(LOCK)
    assert not set(locked(LOCK)) & set(locked(TESTS_LOCK)), "in both"
    assert f"-c {LOCK}" in (ROOT / TESTS_LOCK).read_text().splitlines(), "the first lock binds the second"


@pytest.mark.parametrize("locks, extras", [([LOCK], []), ([LOCK, TESTS_LOCK], ["dev"])])
def test_the_locks_hold_what_pyproject_asks_for(locks: list[str], extras: list[str]) -> None:
    """With all that it needs in turn, in versions that go together, and nothing besides."""
    optional = project()["optional-dependencies"]
    have, needed = locked(*locks), set()
    asked = [("pyproject.toml", Requirement(line))
             for line in [*project()["dependencies"], *(line for extra in extras for line in optional[extra])]]
    while asked:
        by, wanted = asked.pop()
        name = _key(wanted.name)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}) or name in TOOLS:
            continue
        assert name in have, f"{' and '.join(locks)} lack {wanted}, which {by} needs"
        assert wanted.specifier.contains(have[name], prereleases=True), f"{by} needs {wanted}; {have[name]} is locked"
        for extra in {"", *wanted.extras} - {seen for key, seen in needed if key == name}:
            needed.add((name, extra))
            asked += [(name, one) for one in _requirements_of(name, extra)]
    assert not set(have) - {name for name, _ in needed}, "locked, and nothing asks for it"
    assert any(Requirement(r).name == "flash-attn" for r in optional["gpu"])


def _requirements_of(name: str, extra: str) -> list[Requirement]:
    """What the installed package needs on this platform; with an extra what that adds."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    found = [Requirement(line) for line in lines]
    for one in found:
        if one.marker is not None and one.marker.evaluate({"extra": extra}):
            one.marker = None
    return [one for one in found if one.marker is None]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_required_cannot_be_skipped(tmp_path: Path) -> None:
    """STUDIO_TEST_REQUIRE=1, as .ci/run has it: no test passes by being skipped for want of a package."""
    assert "export STUDIO_TEST_REQUIRE=1" in (ROOT / ".ci" / "run").read_text()
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('no_such_package', reason='no_such_package is not installed')\n")
    (tmp_path / "test_parts.py").write_text(
        "import pytest\n\ndef test_one():\n    pytest.skip('no_such_package is not installed')\n"
        "\ndef test_other():\n    pytest.skip('there is no CUDA device')\n")

    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c",
               str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "--continue-on-collection-errors", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60,
                            env={**os.environ, "STUDIO_TEST_REQUIRE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert "1 failed, 1 skipped, 1 error" in result.stdout and result.stdout.count("none may be skipped here") >= 2


def test_the_layout_stands() -> None:
    for name in ("minimind", "app/core", "worker", "templates", "static", "migrations", "tests", "docs", "benchmarks"):
        assert (ROOT / name).is_dir(), f"{name}/ is missing"
    for name in ("README.md", "train.py", "pyproject.toml", LOCK, TESTS_LOCK, "package.json", "package-lock.json",
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


ROLES = ("web", "worker", "inference")
#: a drain ends after 45 s at the latest
DRAIN_S = 45


def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def seconds(duration: str) -> float:
    """A duration as compose reads it: ``1m30s``."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|m|s)", duration)
    assert parts and "".join(n + unit for n, unit in parts) == duration, f"{duration!r} is no duration"
    return sum(float(n) * {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6}[unit] for n, unit in parts)


def volumes(service: dict) -> dict[str, str]:
    """Where a service has which volume: path -> name."""
    return {path: name for name, path in (str(v).split(":")[:2] for v in service.get("volumes", []))}


def test_compose_describes_the_roles() -> None:
    described = compose()
    services = described["services"]
    assert set(services) == {*ROLES, "postgres", "valkey"}
    for name in ROLES:
        service = services[name]
        assert service["init"] is True, "somebody has to reap what a training leaves"
        assert service["build"] == "." and service["image"] == services["web"]["image"]
        assert volumes(service) == volumes(services["web"]) == {"/data": "studio-data"}, "all three see the same runs"
        assert service["environment"]["STUDIO_DATABASE_URL"].startswith("postgresql://")
        assert service["environment"]["STUDIO_DATABASE_URL"].endswith("@postgres:5432/studio")
        assert service["environment"]["STUDIO_REDIS_URL"].startswith("redis://valkey:")
    for service in services.values():
        assert set(volumes(service).values()) <= set(described["volumes"])
        assert set(service.get("depends_on", {})) <= set(services)
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy" and "healthcheck" in services[needed]
    worker = services["worker"]
    assert re.fullmatch(r"[1-9]\d*gb", worker["shm_size"])
    assert "--drain" in worker["command"] and seconds(worker["stop_grace_period"]) >= DRAIN_S + 15
    url = services["web"]["environment"]["STUDIO_DATABASE_URL"]
    assert f":{services['postgres']['environment']['POSTGRES_PASSWORD']}@" in url


def test_compose_lets_in_this_machine_alone() -> None:
    services = compose()["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"web"}, "the database and the broker have no port outside"
    for port in published["web"]:
        assert str(port).startswith("127.0.0.1:"), "only this machine, unless the owner decides otherwise"


def test_compose_gives_commands_and_settings_that_exist() -> None:
    from app.core.settings import Settings
    from worker.cli.__main__ import COMMANDS

    text = (ROOT / "docker-compose.yml").read_text()
    services = compose()["services"]
    for name in ROLES:
        assert services[name]["command"][0] == name and name in COMMANDS
        for variable in services[name]["environment"]:
            assert variable.removeprefix("STUDIO_").lower() in Settings.model_fields, variable
    for command in re.findall(r"docker compose run --rm web (\w+)", text):
        assert command in COMMANDS
    for name in re.findall(r"docs/[\w-]+\.md", text):
        assert (ROOT / name).is_file()


def described(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


OVERLAYS = {"docker-compose.share.yml": set(ROLES) | {"postgres", "valkey"}, "docker-compose.gpu.yml": {"worker"}}
COMPOSE = ("docker-compose.yml", "docker-compose.workers.yml", *OVERLAYS)


@pytest.mark.parametrize("name", COMPOSE)
def test_every_compose_file_names_settings_commands_and_files_that_exist(name: str) -> None:
    from app.core.settings import Settings
    from app.core.timing import Timing
    from worker.cli.__main__ import COMMANDS

    fields = {f"STUDIO_{field}".upper() for field in (*Settings.model_fields, *Timing.model_fields)}
    for role, service in described(name)["services"].items():
        if role in ROLES:
            assert set(service.get("environment", {})) <= fields
            assert service.get("command", [role])[0] in COMMANDS
        for variable, value in service.get("environment", {}).items():
            assert value is not None, f"{variable} has no value"
    text = (ROOT / name).read_text()
    for mentioned in re.findall(r"docker-compose[\w.]*\.yml|docs/[\w-]+\.md", text):
        assert (ROOT / mentioned).is_file(), mentioned
    heads = set(re.findall(r"^#   (\w+)=", text, re.MULTILINE))
    asked = set(re.findall(r"\$\{(\w+):\?", text))  # compose refuses to start without
    assert asked == heads, "what .env must say stands at the head, and nothing else does"


def test_a_further_machine_is_a_worker_like_the_first_ones() -> None:
    first, further = compose(), described("docker-compose.workers.yml")
    assert set(further["services"]) == {"worker"}
    ours, theirs = first["services"]["worker"], further["services"]["worker"]
    for key in ("build", "image", "init", "restart", "command", "shm_size", "stop_grace_period"):
        assert theirs[key] == ours[key], key
    assert volumes(theirs) == volumes(ours), "the run directory lies at the same path"
    assert set(theirs["environment"]) == {"STUDIO_HOST_ID", "STUDIO_DATABASE_URL", "STUDIO_REDIS_URL"}
    assert further["volumes"] == described("docker-compose.share.yml")["volumes"], "and is the same export"
    assert further["volumes"]["studio-data"]["driver_opts"]["type"] == "nfs"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_services_that_there_are(name: str) -> None:
    first = compose()
    assert set(described(name)["services"]) == OVERLAYS[name] <= set(first["services"])
    assert set(described(name).get("volumes", {})) <= set(first["volumes"])


def test_shared_servers_have_a_password_and_one_address() -> None:
    shared = described("docker-compose.share.yml")
    services = shared["services"]
    for name, port in (("postgres", 5432), ("valkey", 6379)):
        [published] = services[name]["ports"]
        assert published.startswith("${STUDIO_SHARE_ADDRESS:?") and published.endswith(f"}}:{port}:{port}")
    assert ":?" in services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert "requirepass ${STUDIO_REDIS_PASSWORD:?" in shared["configs"]["valkey"]["content"]
    for role in ROLES:
        assert services[role]["environment"]["STUDIO_REDIS_URL"].startswith("redis://:${STUDIO_REDIS_PASSWORD:?")


def test_the_page_about_machines_has_every_time() -> None:
    from app.core.timing import Timing

    text = (ROOT / "docs" / "running-elsewhere.md").read_text()
    table = text[text.index("### Clocks and times"):text.index("### Models that answer")]
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", table, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(rows))) == {name.upper() for name in Timing.model_fields}


def test_the_image_is_made_of_what_is_there() -> None:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    stages, at, left_out = [], None, (ROOT / ".dockerignore").read_text().split()
    made = set()
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word == "FROM":
            at = rest[2] if len(rest) == 3 else None
            stages.append(at)
        elif word == "COPY" and rest[0].startswith("--from="):
            assert rest[0].removeprefix("--from=") in stages[:-1]
            made.add(rest[-1])
        elif word == "COPY":
            for name in rest[:-1]:
                assert (ROOT / name).exists() and name not in left_out, f"COPY {name}"
    assert made == {"static/dist"} <= set(left_out), "made in the image, never taken from this machine"
    assert 'ENTRYPOINT ["./studio"]' in text and "USER studio" in text
    for secret in ("data", ".venv", "node_modules", ".git"):
        assert secret in left_out


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
    """``./studio`` in a copy of the checkout with a stand-in for Python: installs once, then starts at once. The lock
    of the tests is for ``./studio test`` alone."""
    (tmp_path / "worker").mkdir()
    shutil.copy(ROOT / "studio", tmp_path / "studio")
    (tmp_path / "requirements.txt").write_text("one==1\n")
    (tmp_path / "requirements-dev.txt").write_text("other==1\n")
    for name in ("package.json", "package-lock.json", "static/build.mjs", "static/js/a.js", "static/css/a.css",
                 "static/dist/manifest.json", "static/dist/.stamp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "worker" / "bootstrap.py").write_text(
        "import os, pathlib, shutil, sys\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "(root / '.venv/bin').mkdir(parents=True, exist_ok=True)\n"
        "python = root / '.venv/bin/python'\n"
        "python.write_text('#!/bin/sh\\necho ran \"$@\"\\n'); python.chmod(0o755)\n"
        "for name in ['requirements'] + ['requirements-dev'] * (sys.argv[2] == 'test'):\n"
        "    shutil.copy(root / f'{name}.txt', root / f'.venv/{name}.stamp')\n"
        "print('installed', flush=True)\n"
        "os.execv(root / 'studio', [str(root / 'studio'), *sys.argv[2:]])\n")

    def start(command: str = "up") -> list[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("STUDIO_")}
        return subprocess.run([tmp_path / "studio", command, "--data_dir", "a b"], env=env, capture_output=True,
                              text=True, check=True, timeout=30).stdout.splitlines()

    assert start() == ["installed", "ran -P -m worker.cli up --data_dir a b"]
    assert start() == ["ran -P -m worker.cli up --data_dir a b"]
    (tmp_path / "requirements.txt").write_text("one==2\n")
    assert start()[0] == "installed"
    assert start("test") == ["installed", "ran -P -m worker.cli test --data_dir a b"]
    assert start("test") == ["ran -P -m worker.cli test --data_dir a b"]
    (tmp_path / "requirements-dev.txt").write_text("other==2\n")
    assert start() == ["ran -P -m worker.cli up --data_dir a b"]
    assert start("test")[0] == "installed"


def test_a_missing_interpreter_is_one_sentence(tmp_path: Path) -> None:
    result = subprocess.run([ROOT / "studio", "doctor"], capture_output=True, text=True, timeout=30,
                            env={**os.environ, "STUDIO_PYTHON": str(tmp_path / "python")})
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "is not a Python 3.11 or newer" in result.stderr
