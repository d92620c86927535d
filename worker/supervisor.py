"""``./studio up``: web, worker, inference and broker on this machine, kept alive and ended together.

The children never outlive the supervisor: each asks to be killed when its parent ends (``minimind.lifeline``).
Only a runner, started detached by the worker, lives on if the supervisor is killed; the next ``up`` adopts it.
A wish to stop (SIGINT, SIGTERM, SIGHUP) goes down a ladder that is shorter than 45 seconds:

====== ==========================================================================================
0 s    the worker drains: its runs save, pause and go back to ``queued``; then everything ends
30 s   SIGTERM to whatever is still there, runners and their ranks included
40 s   SIGKILL to the same, and the runs that had no time to save are put back into the queue
====== ==========================================================================================
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from app.core.settings import Settings, get_settings
from minimind.errors import MiniMindError
from minimind.lifeline import VARIABLE
from worker import broker, processes
from worker.children import ROOT, Child
from worker.drain import attempts_of_host, kill_host, kill_unasked

TERM_AFTER_S = 30.0
KILL_AFTER_S = 40.0
IMPATIENT_KILL_AFTER_S = 3.0
READY_WITHIN_S = 120.0
#: a child that dies this often before everything is ready has something that a restart does not mend
DEATHS_BEFORE_READY = 3
POLL_S = 0.1


class UpError(MiniMindError):
    """The studio cannot start as asked."""

    code = "START"


@dataclass(frozen=True)
class Options:
    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    browser: bool = True


class Supervisor:
    """One start of the studio. ``run`` returns the exit status."""

    def __init__(self, options: Options):
        self.options = options
        self.children: list[Child] = []
        self.stop_asked = 0
        self._lock_file = None
        self._listener: socket.socket | None = None
        self._token = secrets.token_urlsafe(32)

    # -- start ------------------------------------------------------------------------------------

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        data_dir = self.options.data_dir
        prepare_data_dir(data_dir)
        self._lock_file = lock_data_dir(data_dir)
        self._listener = listen(self.options.host, self.options.port)
        try:
            self._start()
            if self._wait_until_ready():
                self._announce()
            while not self.stop_asked:
                self._keep_alive()
                time.sleep(POLL_S)
        finally:
            self._stop()
        return 0

    def _start(self) -> None:
        from worker.database import open_installation  # Alembic: after the cheap checks

        embedded = None
        env = self._environment()
        if not os.environ.get("STUDIO_REDIS_URL"):
            embedded = broker.prepare(self.options.data_dir)
            embedded.clean()
            env["STUDIO_REDIS_URL"] = os.environ["STUDIO_REDIS_URL"] = embedded.url
            self._add("broker", embedded.command, {**env, VARIABLE: str(os.getpid())}).start()
        open_installation()
        check_host(self.options.host)
        if embedded is not None:
            self._wait_for(lambda: broker.answers(embedded.url), "The broker", within_s=15)
        python = [sys.executable, "-P", "-m", "worker.cli"]
        kept = {**env, VARIABLE: str(os.getpid())}
        self._listener.set_inheritable(True)
        self._add("web", [*python, "web"], {**kept, "STUDIO_LOGIN_TOKEN": self._token,
                                            "STUDIO_LISTEN_FD": str(self._listener.fileno())},
                  pass_fds=(self._listener.fileno(),))
        self._add("worker", [*python, "worker", "--drain"], kept)
        self._add("inference", [*python, "inference"], kept)
        for child in self.children:
            if not child.alive:
                child.start()

    def _environment(self) -> dict[str, str]:
        """What every child gets; secrets only through here, never through argv."""
        for name, value in (("STUDIO_DATA_DIR", self.options.data_dir), ("STUDIO_HOST", self.options.host),
                            ("STUDIO_PORT", self._listener.getsockname()[1])):
            os.environ[name] = str(value)
        get_settings.cache_clear()
        return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def _add(self, name: str, argv: list[str], env: dict[str, str], pass_fds: tuple[int, ...] = ()) -> Child:
        log = self.options.data_dir / "logs" / f"{name}.log"
        self.children.append(Child(name, argv, env=env, log=log, say=say, pass_fds=pass_fds))
        return self.children[-1]

    def _keep_alive(self) -> None:
        for child in self.children:
            child.keep_alive()

    def _wait_for(self, is_true: Callable[[], bool], what: str, *, within_s: float) -> bool:
        """Wait, keeping the children alive; False when a stop was asked meanwhile."""
        deadline = time.monotonic() + within_s
        while not is_true():
            if self.stop_asked:
                return False
            self._keep_alive()
            for child in self.children:
                if child.deaths >= DEATHS_BEFORE_READY:
                    raise UpError(f"{child.name} does not start. The end of its log {child.log}:\n"
                                  f"{child.last_words()}", hint="./studio doctor checks this machine.")
            if time.monotonic() > deadline:
                raise UpError(f"{what} did not answer within {within_s:.0f} s.",
                              hint=f"Look into {self.options.data_dir / 'logs'}; ./studio doctor checks this machine.")
            time.sleep(POLL_S)
        return True

    def _wait_until_ready(self) -> bool:
        host, port = self._listener.getsockname()[:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1" if "." in host else "::1"
        url = f"http://{in_url(host)}:{port}/readyz"
        return self._wait_for(lambda: is_ready(url), "The studio", within_s=READY_WITHIN_S)

    def _announce(self) -> None:
        port = self._listener.getsockname()[1]
        url = f"http://{in_url(self.options.host)}:{port}/?token={self._token}"
        print(f"Studio ready at {url}", flush=True)
        if self.options.browser and is_loopback(self.options.host) and has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    # -- stop -------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stop_asked += 1

    def _stop(self) -> None:
        """Down the ladder of this module's docstring; returns when nothing is left."""
        began = time.monotonic()
        if any(child.name == "worker" and child.alive for child in self.children):
            say("stopping: running training saves its state and continues at the next start "
                "(Ctrl-C again: end it at once) ...")
        term_at, kill_at = began + TERM_AFTER_S, began + KILL_AFTER_S
        terminated = False
        signals_seen = max(self.stop_asked, 1)
        asked: set[str] = set()  # children that were told to end
        while self._end_in_order(asked):
            now = time.monotonic()
            if self.stop_asked > signals_seen:  # once more: TERM to everything now, KILL soon; and again: KILL now
                signals_seen = self.stop_asked
                term_at, kill_at = now, now if terminated else now + IMPATIENT_KILL_AFTER_S
            if now >= kill_at:
                break
            if now >= term_at and not terminated:
                terminated = True
                asked.update(child.name for child in self.children)
                self._terminate_everything()
            time.sleep(POLL_S)
        for child in self.children:
            child.kill()
        if self.children:
            self._settle()
        if self._listener is not None:
            self._listener.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def _end_in_order(self, asked: set[str]) -> bool:
        """Tell the next children to end; False when all of them have. The worker goes first: it drains while web
        still shows it and the broker still carries its bells."""
        for names in (("worker",), ("web", "inference"), ("broker",)):
            present = [child for child in self.children if child.name in names]
            for child in present:
                if child.name not in asked:
                    asked.add(child.name)
                    child.signal(signal.SIGTERM)
            if any(child.alive for child in present):
                return True
        return False

    def _terminate_everything(self) -> None:
        for child in self.children:
            child.signal(signal.SIGTERM)
        try:
            for attempt in attempts_of_host(get_settings().host_id):
                processes.send(processes.marked(processes.marker(attempt.run_id, attempt.number)), signal.SIGTERM)
        except SQLAlchemyError as error:
            say(f"the database does not answer ({str(error).splitlines()[0]})")
            processes.send(processes.marked_in(self.options.data_dir), signal.SIGTERM)

    def _settle(self) -> None:
        """Kill what is left of this host's runs and put them back into the queue; after a drain there is nothing."""
        try:
            kill_host()
        except SQLAlchemyError as error:
            say(f"the database does not answer ({str(error).splitlines()[0]}); the next start settles the runs")
            kill_unasked()


# -- parts ----------------------------------------------------------------------------------------


def say(text: str) -> None:
    """A line for the terminal, which may be gone (SIGHUP)."""
    try:
        print(f"studio: {text}", file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")


def prepare_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("logs", "secrets", "runs", "datasets", "tokenizers", "cache", "uploads"):
            (data_dir / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UpError(f"The data directory {data_dir} cannot be made: {error.strerror}.",
                      hint="Choose another with --data_dir.") from None


def lock_data_dir(data_dir: Path):
    """The open lock file; the lock ends with the process, however it ends."""
    file = open(data_dir / "studio.lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UpError(f"Another studio{f' (pid {holder})' if holder else ''} already uses the data directory "
                      f"{data_dir}.", hint="Stop it first, or choose another directory with --data_dir.") from None
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def listen(host: str, port: int) -> socket.socket:
    """The listening socket. The supervisor keeps it, so a restarting web process refuses nobody."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
    except socket.gaierror:
        raise UpError(f"--host {host!r} is not an address of this machine.",
                      hint="Leave it out to serve this machine only.") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except PermissionError:
        listener.close()
        raise UpError(f"Port {port} may not be used by an ordinary user.",
                      hint="Choose one above 1023, for example --port 8000.") from None
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UpError(f"Port {port} on {host} is taken by another program.",
                          hint="Stop that program, or choose another port, for example "
                               f"--port {port + 1 if port < 65535 else 8000}.") from None
        raise UpError(f"{host}:{port} cannot be used: {error.strerror}.",
                      hint="Leave --host out to serve this machine only.") from None
    return listener


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str) -> None:
    """Other machines are let in only where they can log in. The database must be migrated."""
    from worker.database import has_password_user

    if not is_loopback(host) and not has_password_user():
        raise UpError(f"--host {host} lets other machines in, and no user has a password yet.",
                      hint="Make one with './studio user add NAME --role admin', or leave --host out.")


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def has_screen() -> bool:
    return sys.stdout.isatty() and (sys.platform == "darwin" or bool(os.environ.get("DISPLAY")
                                                                     or os.environ.get("WAYLAND_DISPLAY")))


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is this machine


def is_ready(url: str) -> bool:
    """Whether web answers and says that database, worker and broker do too."""
    try:
        with _opener.open(url, timeout=2) as answer:
            json.load(answer)
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False


def up(options: Options) -> int:
    return Supervisor(options).run()


def options_from(settings: Settings, *, host: str | None, port: int | None, browser: bool) -> Options:
    return Options(settings.data_dir, host or settings.host, settings.port if port is None else port, browser)
