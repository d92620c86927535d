"""The named moments of a save. Nothing happens at them: whoever wants to know what a kill there leaves (the tests, in
a process of their own) appends a function to ``watchers``."""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "before_fsync",     # rank 0 has written its files; nothing is sure to be on the disk
    "after_fsync",      # they are
    "before_manifest",  # every rank has written its part; the directory is not a checkpoint yet
    "after_manifest",   # it is whole, under a name that nobody reads
    "after_rename",     # it is the newest checkpoint
    "before_word",      # the trainer has not said so
    "after_row",        # the database knows it
    "in_retention",     # an older one has lost its manifest and not yet its files
)

watchers: list[Callable[[str], None]] = []


def reached(point: str) -> None:
    for watcher in watchers:
        watcher(point)
