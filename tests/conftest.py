"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A machine that is busy elsewhere is no failure of an example.
settings.register_profile("worldmodel", deadline=None)
settings.load_profile("worldmodel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup` one of two processes starts all clusters; each other file stays in one."""
    if not config.pluginmanager.has_plugin("xdist"):
        return
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
