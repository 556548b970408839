"""bf16 only where the processor multiplies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.processor import has_bf16_units


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name: X\nflags\t\t: fpu avx512_bf16\n", True),
        ("flags : amx_tile amx_bf16\n", True),
        ("processor: 0\n", True),  # no flags, as on Arm: nobody can tell
    ],
)
def test_bf16_units_are_read_from_the_flags(tmp_path: Path, text: str, has: bool):
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16_units(tmp_path / "cpuinfo") is has
    assert has_bf16_units(tmp_path / "nowhere")
