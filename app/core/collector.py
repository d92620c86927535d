"""Python's garbage collector, in processes that answer people while they run."""

from __future__ import annotations

import gc


def leave_alone_what_is_here() -> None:
    """Whatever exists by now (modules, mostly) is not looked at by the collector again.

    A full collection stops all threads for as long as it takes to walk over every object: a fifth of a second where
    torch or the web application are imported, felt by all whose answers are being written. Once, when everything is
    imported and nothing that comes and goes has come.
    """
    gc.collect()
    gc.freeze()
