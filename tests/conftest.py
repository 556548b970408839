"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy elsewhere is no failure of an example.
settings.register_profile("worldmodel", deadline=None)
settings.load_profile("worldmodel")
