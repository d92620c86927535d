"""Train a stage: ``python train.py [STAGE] [--flags]`` or ``torchrun --nproc_per_node N train.py [STAGE] [--flags]``.

Without a stage it pretrains; without data it learns the starter corpus; ``python train.py STAGE --help`` lists every
option. Exit code: 0 completed, paused or stopped; 2 a mistake in what was given; 1 a crash.
"""

from __future__ import annotations

import os
import signal
import sys

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "pydantic", "jinja2")  # what the core needs


def leave(number: int, frame: object) -> None:
    """Ctrl-C before the run has begun: nothing is half-made, so nothing need be tidied up."""
    os.write(2, b"\nStopped before the run began.\n")
    os._exit(130)


def main(arguments: list[str]) -> int:
    # Threads that wait for each other should sleep, not spin; read when torch is loaded. Measured with two threads on
    # two cores: 7 % fewer steps on an idle machine, 1.75 times as many beside one busy process, more beside several.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from minimind.lifeline import die_as_told
    from minimind.stacks import show_when_asked

    die_as_told()
    show_when_asked()
    from minimind.errors import MiniMindError

    try:
        from minimind import cli, job

        return job.run_command(cli.parse(arguments))
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        print(f"error: {sys.executable} has no package {error.name}. Use the environment that ./studio makes "
              "(.venv/bin/python train.py), or: pip install -r requirements.txt", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGINT, leave)  # until the session has a better answer
    status = main(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Everything is written. Ranks leave one after the other, and the threads of a process group that outlive the
        # first of them were seen to abort the others once in a while.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
