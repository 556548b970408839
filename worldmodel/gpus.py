"""What GPUs can, from their vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense rates, and a link in one direction."""

    memory_gb: float
    bf16_tflops: float
    fp32_tflops: float
    memory_gb_s: float
    link_gb_s: float
    has_fp8: bool = True  # units for 8 bits, from compute capability 8.9 on


GPUS = {
    # nvidia.com/en-us/data-center/h100: SXM; bf16 is half of the sheet's 1,979 with sparsity, NVLink half of
    # 900 both ways. The others likewise.
    "h100": Gpu(80, 989, 67, 3350, 450),
    "h200": Gpu(141, 989, 67, 4800, 450),  # nvidia.com/en-us/data-center/h200
    "b200": Gpu(180, 2250, 75, 8000, 900),  # HGX B200
    "a100": Gpu(80, 312, 19.5, 2039, 300, has_fp8=False),  # A100 80GB SXM
    "a100-40": Gpu(40, 312, 19.5, 1555, 300, has_fp8=False),
    "l40s": Gpu(48, 362, 91.6, 864, 32),  # PCIe 4 x16
    "l4": Gpu(24, 121, 30.3, 300, 32),
    "a10g": Gpu(24, 70, 35, 600, 32, has_fp8=False),  # aws.amazon.com/ec2/instance-types/g5
    "rtx4090": Gpu(24, 165, 82.6, 1008, 32),  # Ada architecture white paper, bf16 with fp32 sums
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of the sheet, by the name that CUDA gives the device; None for one that is not in the table."""
    words = device_name.lower().replace("-", " ").split()
    joined = "".join(words)
    for name in sorted(GPUS, key=len, reverse=True):
        if name in words or (name.startswith("rtx") and name in joined):
            gpu = GPUS[name]
            return 1e12 * (gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops)
    return None
