"""Train a stage: ``python train.py [STAGE] [--flags]`` or ``torchrun --nproc_per_node N train.py [STAGE] [--flags]``.

Without a stage it pretrains; without data it learns the starter corpus; ``python train.py STAGE --help`` lists every
option. Exit code: 0 completed, paused or stopped; 2 a mistake in what was given; 1 a crash.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> int:
    # Threads that wait for each other should sleep, not spin; read when torch is loaded. Measured with two threads on
    # two cores: 7 % fewer steps on an idle machine, 1.75 times as many beside one busy process, more beside several.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from minimind.lifeline import die_as_told

    die_as_told()
    from minimind.errors import MiniMindError

    try:
        from minimind import cli, job

        return job.run_command(cli.parse(arguments))
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
