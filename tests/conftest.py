"""What every test shares: which tests run where, and one running studio per module that asks for it.

Nothing of the studio is imported at the top: the core's tests run where only torch, numpy, tokenizers,
safetensors and pydantic are installed. Tests that need more are skipped there, with the reason; STUDIO_TEST_REQUIRE=1
makes failures of those, so that nobody takes what was not run for what passed.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
#: packages that a part of the tests needs; where one is missing that part is not collected
NEEDED = {
    "app": ("fastapi", "sqlalchemy", "httpx2", "redis"),
    "worker": ("sqlalchemy", "celery", "redis", "psutil"),
    "integration": ("fastapi", "sqlalchemy", "celery", "redis", "httpx2", "psutil"),
}
#: single files that need more than the core
NEEDED_BY_FILE = {"test_architecture.py": ("fastapi", "sqlalchemy"), "test_repository.py": ("packaging", "yaml"),
                  "minimind/test_lifeline.py": ("psutil",)}


def _lacks(packages: tuple[str, ...]) -> bool:
    return any(importlib.util.find_spec(name) is None for name in packages)


#: nothing may be left out for want of a package or a browser
REQUIRES_ALL = bool(os.environ.get("STUDIO_TEST_REQUIRE"))
#: how the reasons of such skips end or begin
MISSING = ("is not installed", "could not import", "there is no Node", "THE PAGES WERE NOT TESTED IN A BROWSER")

collect_ignore = [] if REQUIRES_ALL else \
    [name for name, packages in {**NEEDED, **NEEDED_BY_FILE}.items() if _lacks(packages)]

# Settings of the developer's shell must not reach the tests. (STUDIO_TEST_* and STUDIO_PYTHON are for them.)
for _name in [n for n in os.environ if n.startswith("STUDIO_") and not n.startswith(("STUDIO_TEST_", "STUDIO_PYTHON"))]:
    del os.environ[_name]
os.environ["WANDB_MODE"] = "offline"
# A shell starts what it sends into the background with Ctrl-C ignored, and children inherit that: those of the tests
# are to be interruptible also there.
signal.signal(signal.SIGINT, signal.default_int_handler)
# runs of the tests that stand beside each other have no GPU in common
os.environ["STUDIO_LOCK_DIR"] = os.path.join(tempfile.gettempdir(), f"studio-test-locks-{os.getpid()}")


def _required(report: pytest.TestReport | pytest.CollectReport) -> pytest.TestReport | pytest.CollectReport:
    """The report; a failed one where it tells of a skip for what has to be there."""
    if REQUIRES_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[-1])
        if any(words in reason for words in MISSING):
            report.outcome, report.longrepr = "failed", f"none may be skipped here: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    return _required((yield))


def pytest_collection_finish() -> None:
    """What the imports made stays to the end: the collector need not look through it a hundred times."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("STUDIO_TEST_ALL") and "slow" not in config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item not in slow]
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory):
    """One running ``./studio up`` on a free port with a data directory of its own; stopped after the module."""
    from tests.integration.studio import RunningStudio

    running = RunningStudio(tmp_path_factory.mktemp("studio"))
    running.start()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def broker():
    """An empty broker for the tests of a module; a ``Broker`` of ``tests/inference_rig.py``."""
    from tests.inference_rig import running_broker

    with running_broker() as running:
        yield running
