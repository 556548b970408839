"""What holds for every test."""

from __future__ import annotations

import atexit
import os
import sys

import pytest
from hypothesis import settings

# A machine that is busy elsewhere is no failure of an example.
settings.register_profile("worldmodel", deadline=None)
settings.load_profile("worldmodel")

STATUS = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup` one of two processes starts all clusters; each other file stays in one."""
    if not config.pluginmanager.has_plugin("xdist"):
        return
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the process before native libraries are taken down: where Ray has run in it, one of its threads
    may still use what its own destructors free (boost::asio's scheduler, seen in cores of its workers), and
    a suite that passed would end in a segmentation fault."""
    if "ray" not in sys.modules or hasattr(config, "workerinput") or STATUS not in config.stash:
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(config.stash[STATUS])
