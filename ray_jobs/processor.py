"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

BF16_UNITS = {"amx_bf16", "avx512_bf16"}


def has_bf16_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Without them a product in bf16 takes ten times as long as in fp32. True where nobody can tell."""
    if not cpuinfo.exists():
        return True
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    return not flags or bool(BF16_UNITS & set(flags[0].split()))
