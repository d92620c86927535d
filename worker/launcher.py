"""Starting things: a runner, detached; and a run's ranks, which die with their runner.

``python -m worker.launcher ARGS`` is torchrun that ends with its parent and is heard by this machine alone: one rank
is started without it.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.core.queue import Claim
from app.core.settings import Settings, get_settings
from minimind.run_dir import write_json
from worker import gpus
from worker.causes import RANKS_FILE
from worker.device_lock import inherited_fds
from worker.processes import ATTEMPT_VARIABLE, marker, remember

ROOT = Path(__file__).resolve().parent.parent
#: what a training process has no business to know
SECRETS = ("STUDIO_DATABASE_URL", "STUDIO_REDIS_URL", "STUDIO_LOGIN_TOKEN", "STUDIO_LISTEN_FD", "STUDIO_DRAIN",
           "STUDIO_WORKER_PID")
#: what belongs to the process that starts a runner, not to the runner
NOT_A_RUNNERS = ("MINIMIND_DIE_WITH_PARENT", "STUDIO_LOGIN_TOKEN", "STUDIO_LISTEN_FD", "STUDIO_DRAIN",
                 "STUDIO_WORKER_PID")
#: after SIGTERM, or the death of one rank, torchrun waits this long for the others before it kills them
TORCHRUN_SHUTDOWN_S = 4
#: tells the process around torchrun where to write how its ranks ended
RANKS_VARIABLE = "STUDIO_RANKS_FILE"


def start_runner(claim: Claim) -> int:
    """Start the runner of ``claim`` in a session of its own, so that it outlives whoever starts it; its pid."""
    log = get_settings().runs_dir / claim.run_id / "attempts" / str(claim.attempt) / "logs" / "runner.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in NOT_A_RUNNERS}
    env |= {ATTEMPT_VARIABLE: marker(claim.run_id, claim.attempt), "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1", "STUDIO_DATA_DIR": str(get_settings().data_dir)}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.runner", claim.run_id, str(claim.attempt)], cwd=ROOT, env=env,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    remember(process)
    return process.pid


def rank_command(stage: str, run_dir: Path, attempt: int, *, world_size: int, allow_changes: bool,
                 cache_dir: Path) -> list[str]:
    """The argv that trains: train.py itself for one rank, torchrun around it for several."""
    train = [str(ROOT / "train.py"), stage, "--out", str(run_dir), "--attempt", str(attempt), "--resume", "auto",
             "--cache_dir", str(cache_dir)] + (["--allow_changes"] if allow_changes else [])
    if world_size == 1:
        return [sys.executable, "-P", *train]
    return [sys.executable, "-P", "-m", "worker.launcher", "--nnodes", "1", "--nproc-per-node", str(world_size),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", f"{run_dir.name}-{attempt}",
            "--local-addr", "127.0.0.1", "--max-restarts", "0", "--monitor-interval", "0.2",
            "--shutdown-timeout", str(TORCHRUN_SHUTDOWN_S), *train]


def rank_environment(settings: Settings, run_id: str, attempt: int, devices: tuple[str, ...],
                     world_size: int) -> dict[str, str]:
    """The environment of the ranks that this process will start. CPU ranks share the cores they hold; GPU ranks see
    only their GPUs."""
    env = {k: v for k, v in os.environ.items() if k not in SECRETS}
    env |= {ATTEMPT_VARIABLE: marker(run_id, attempt), "MINIMIND_DIE_WITH_PARENT": str(os.getpid()),
            RANKS_VARIABLE: str(settings.runs_dir / run_id / "attempts" / str(attempt) / "logs" / RANKS_FILE),
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if devices and devices[0].startswith("cuda:"):
        env["CUDA_VISIBLE_DEVICES"] = gpus.visible_to_ranks(devices)
        env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order in which NVML numbers them too
    else:
        env["CUDA_VISIBLE_DEVICES"] = ""
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(devices) // world_size)))
        if sys.platform == "linux":
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one host: nothing leaves it, whatever its name resolves to
    return env


def main(arguments: list[str]) -> None:
    from minimind.lifeline import VARIABLE, die_as_told

    die_as_told(always=True)
    os.environ[VARIABLE] = str(os.getpid())  # the ranks' parent is torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    keep_stores_on_loopback()
    hand_locks_on()
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        write_down(error.failures)
        raise


def write_down(failures: dict[int, Any]) -> None:
    """How the ranks ended, in the order in which torchrun noticed: its own exit status is 1 whatever happened."""
    place = os.environ.get(RANKS_VARIABLE)
    if not place:
        return
    ranks = [{"rank": rank, "status": failure.exitcode, "t": failure.timestamp} for rank, failure in failures.items()]
    try:
        write_json(Path(place), ranks)
    except OSError as error:  # the runner then knows only that torchrun has failed, and finds why by itself
        print(f"How the ranks ended could not be written to {place}: {error.strerror}.", file=sys.stderr)


def hand_locks_on() -> None:
    """Ranks that outlive everybody (in a call of the driver that does not return) keep the locks of their GPUs."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    if fds := inherited_fds():
        subprocess_handler.Popen = functools.partial(subprocess.Popen, pass_fds=fds)


def keep_stores_on_loopback() -> None:
    """The stores of this process's torchrun listen on 127.0.0.1.

    By themselves they listen on every address, whatever their endpoint says, ask nobody for a password, and torchrun
    unpickles what it reads there: whoever reaches the port could run code here.
    """
    import torch.distributed as dist
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

    class LoopbackStore(dist.TCPStore):
        def __init__(self, host_name: str, port: int, *, is_master: bool, **options: Any):
            if is_master:
                listener = socket.create_server(("127.0.0.1", port), backlog=128)
                port = listener.getsockname()[1]
                options["master_listen_fd"] = listener.detach()  # the store closes it
            super().__init__(host_name, port, is_master=is_master, **options)

    dist.TCPStore = c10d_rendezvous_backend.TCPStore = LoopbackStore


if __name__ == "__main__":
    main(sys.argv[1:])
