"""One GPU, one user of it, on the whole machine: locks that end with the processes that hold them.

A lease (``device_lease``) is a row: it can be taken away from a runner that is cut off from the database but still
trains. A lock cannot. It is a ``flock`` on a file that all studios and all users of the machine share, and the kernel
keeps it for as long as any process has the file open: the runner, and the ranks it hands ``fds`` to. So nobody trains
on a GPU that is still in use, however its last user ended and whatever the database says.

- A GPU goes by its UUID where NVML tells one, so containers and users that number GPUs differently mean the same.
- CPU slots take no lock: they are shares of time, and two users of one core only slow each other down.
- The locks bind those who ask for them. Another program on the GPU is not kept away, and the directory is one that
  every user can write to: it guards against accidents, not against malice.

The place is ``/run/lock/minimind-studio-locks`` where ``/run/lock`` is open to every user, else the same name in
``/tmp``; whoever asks, the answer is the same, so root and others meet. ``STUDIO_LOCK_DIR`` names another one
(containers of one machine share theirs by mounting it).
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minimind.errors import MiniMindError
from worker import gpus, processes

NAME = "minimind-studio-locks"
SHARED_PLACES = (Path("/run/lock"), Path("/tmp"))
#: numbers of open files, separated by commas, for a process between runner and ranks that has to hand the locks on
FDS_VARIABLE = "STUDIO_LOCK_FDS"
#: a lock may be looked at by somebody who only asks whether it is free
GLANCE_S = 0.1
_RECORD_BYTES = 1024
_MARK = re.compile(r"^([A-Za-z0-9_.-]{1,64})/(\d{1,9})$")
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as they wrote it down; what is not known is None."""

    pid: int | None = None
    started: float | None = None
    run_id: str | None = None
    attempt: int | None = None
    user: str | None = None

    def __str__(self) -> str:
        whose = f"run {self.run_id}, attempt {self.attempt}" if self.run_id else "another program"
        if self.pid is None:
            return whose
        ended = "" if processes.is_alive(self.pid, self.started) else "; it has ended, what it started has not"
        return f"{whose} (process {self.pid}{f' of user {self.user}' if self.user else ''}{ended})"


class DeviceBusy(MiniMindError):
    """A GPU is in use, as its lock says. ``device`` and ``holder`` say which and by whom."""

    code = "GPU"

    def __init__(self, device: str, holder: Holder):
        super().__init__(f"The GPU {device} of this machine is in use by {holder}.", field="devices",
                         hint="It is asked again in a minute; the run starts once that has ended.")
        self.device = device
        self.holder = holder


class LockPlaceError(MiniMindError):
    """The lock files cannot be used."""


class DeviceLocks:
    """The locks of ``devices`` (``cuda:0`` ...), taken all or none."""

    def __init__(self, devices: Sequence[str], directory: Path | None = None):
        self.devices = tuple(sorted({d for d in devices if d.startswith("cuda:")}))
        self.directory = directory or lock_directory()
        self._files: list[int] = []

    def take(self, patience_s: float = 0.0) -> None:
        """Hold every lock; waits up to ``patience_s`` for those that are held by others.

        Raises ``DeviceBusy`` (which one, by whom), ``gpus.DeviceGone``, or ``LockPlaceError``.
        """
        if self._files or not self.devices:
            return
        names = _lock_names(self.devices)
        until, pause_s = time.monotonic() + max(patience_s, GLANCE_S), 0.02
        while (busy := self._take_all(names)) is not None:
            if time.monotonic() >= until:
                raise busy
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def _take_all(self, names: dict[str, str]) -> DeviceBusy | None:
        files: list[int] = []
        done = False
        try:
            with _Directory(self.directory) as place:
                for device, name in names.items():
                    file = place.lock(name, fcntl.LOCK_EX)
                    if isinstance(file, Holder):
                        return DeviceBusy(device, file)
                    files.append(file)
            for file in files:
                _write_record(file)
            self._files, done = files, True
            return None
        finally:
            if not done:
                for file in files:
                    os.close(file)

    def release(self) -> None:
        """Let go. A lock whose file a rank still has open stays until that rank has ended."""
        files, self._files = self._files, []
        for file in files:
            os.close(file)  # not LOCK_UN, which would take it from the ranks too

    @property
    def fds(self) -> tuple[int, ...]:
        """For ``subprocess.Popen(pass_fds=...)``: a child that has them keeps the locks alive."""
        return tuple(self._files)

    def environment(self) -> dict[str, str]:
        """Tells a child that hands the locks on (``inherited_fds``) which they are."""
        return {FDS_VARIABLE: ",".join(map(str, self._files))} if self._files else {}


def inherited_fds() -> tuple[int, ...]:
    """The locks that this process was handed by its parent, to be handed on."""
    numbers = [int(part) for part in os.environ.get(FDS_VARIABLE, "").split(",") if part.isdecimal()]
    return tuple(number for number in numbers if _is_open(number))


def in_use(devices: Sequence[str], directory: Path | None = None) -> dict[str, Holder]:
    """Those of ``devices`` whose lock somebody holds, and who. Takes nothing."""
    wanted = [d for d in devices if d.startswith("cuda:")]
    found: dict[str, Holder] = {}
    if not wanted:
        return found
    with _Directory(directory or lock_directory()) as place:
        for device, name in _lock_names(wanted, must_be_there=False).items():
            file = place.lock(name, fcntl.LOCK_SH)
            if isinstance(file, Holder):
                found[device] = file
            else:
                os.close(file)
    return found


def lock_directory() -> Path:
    """Where the locks of this machine lie."""
    told = os.environ.get("STUDIO_LOCK_DIR")
    if told:
        return Path(told).expanduser().absolute()
    # the first one that every user can write to, not the first one that we can: root must not meet others nowhere
    for base in SHARED_PLACES:
        if _is_open_to_all(base):
            return base / NAME
    return Path(tempfile.gettempdir()) / NAME


def _is_open_to_all(base: Path) -> bool:
    try:
        mode = base.stat().st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) and mode & 0o1777 == 0o1777 and os.access(base, os.W_OK | os.X_OK)


def _lock_names(devices: Sequence[str], *, must_be_there: bool = True) -> dict[str, str]:
    """device -> name of its lock file, in an order that is the same for everybody."""
    if must_be_there:
        gpus.require(devices)
    uuids = gpus.uuids()
    names = {d: re.sub(r"[^A-Za-z0-9-]", "-", uuids.get(d) or d) + ".lock" for d in devices}
    return dict(sorted(names.items(), key=lambda item: item[1]))


class _Directory:
    """The open directory of the locks; nothing in it is reached through a link."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> _Directory:
        try:
            try:
                self.fd = self._open()
            except FileNotFoundError:
                self._make()
                self.fd = self._open()
        except OSError as error:
            raise self._unusable(f"cannot be used: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(self.path)
        except FileExistsError:
            return
        fd = self._open()
        try:
            os.fchmod(fd, 0o1777)  # a umask must not keep other users out
        finally:
            os.close(fd)

    def _unusable(self, why: str) -> LockPlaceError:
        return LockPlaceError(f"The directory of the GPU locks, {self.path}, {why}.",
                              hint="Make it a directory with the mode 1777, or name another one in STUDIO_LOCK_DIR.")

    def lock(self, name: str, kind: int) -> int | Holder:
        """The open, locked file; or who holds the lock."""
        for _ in range(50):
            file = self._open_file(name)
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read_record(file)
                os.close(file)
                return holder
            if self._is_still(name, file):
                return file
            os.close(file)  # somebody has cleaned up between the two
        raise self._unusable("changes all the time")

    def _open_file(self, name: str) -> int:
        """A plain file of ours or of another user, made where there is none."""
        refused: OSError | None = None
        for _ in range(50):
            try:
                # Without O_CREAT: in a sticky directory the kernel refuses it for a file of another user.
                file = os.open(name, os.O_RDWR | _FLAGS, dir_fd=self.fd)
            except FileNotFoundError:
                try:
                    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666, dir_fd=self.fd)
                    os.fchmod(file, 0o666)
                except FileExistsError:
                    continue
                except OSError as error:
                    refused = error  # a directory that was made this moment is not open to all yet
                    time.sleep(0.01)
                    continue
            except PermissionError:
                try:
                    file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self.fd)  # enough for a lock
                except OSError as error:
                    refused = error
                    time.sleep(0.01)
                    continue
            except OSError as error:
                raise self._unusable(f"holds {name}, which is no plain file ({error.strerror})") from None
            facts = os.fstat(file)
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink <= 1:  # a hard link would be somebody's other file
                return file
            os.close(file)
            raise self._unusable(f"holds {name}, which is no plain file")
        why = refused.strerror if refused else "it comes and goes"
        raise self._unusable(f"does not let us use {name}: {why}")

    def _is_still(self, name: str, file: int) -> bool:
        try:
            there = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(file)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# -- who holds it -------------------------------------------------------------------------------------------------


def _write_record(file: int) -> None:
    """Say who we are. A file that others do not let us write is a lock all the same."""
    record = {"studio_lock": 1, "pid": os.getpid(), "started": processes.start_time(), "uid": os.getuid(),
              "mark": os.environ.get(processes.ATTEMPT_VARIABLE)}
    content = json.dumps(record).encode()
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return
    present = os.pread(file, _RECORD_BYTES, 0)
    if present and not present.startswith(b'{"studio_lock"'):
        return  # not a record of ours: leave it as it is
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, content, 0)
    except OSError as error:  # a full disk keeps nobody from training
        gpus.log.warning("lock_not_signed", error=str(error))


def _read_record(file: int) -> Holder:
    """What stands there, believed only as far as it has the right form: every user may write it."""
    try:
        record = json.loads(os.pread(file, _RECORD_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return Holder()
    if not isinstance(record, dict):
        return Holder()
    mark = _MARK.match(record["mark"]) if isinstance(record.get("mark"), str) else None
    pid, started, uid = (record.get(key) for key in ("pid", "started", "uid"))
    began = started if isinstance(started, (int, float)) and 0 <= started < 1e12 else None
    return Holder(pid if _is_whole(pid) else None, began,
                  mark[1] if mark else None, int(mark[2]) if mark else None, _user(uid) if _is_whole(uid) else None)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
