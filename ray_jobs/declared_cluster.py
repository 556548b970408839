"""What a cluster has, as far as its user declares it: a known GPU by name, or a YAML file of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ray_jobs.errors import UserError
from worldmodel.config_part import Part
from worldmodel.gpus import GPUS
from worldmodel.load_config import load_as

# Products of large matrices reach 0.68 of the sheet on an H100 (673 TFLOP/s), a step 0.42 of those:
# benchmarks/results/2026-11-26_mfu, av_1b and av_300m with their teachers.
EFFICIENCY = 0.68 * 0.42
GPUS_PER_NODE, NETWORK_GB_S = 8, 50.0  # between nodes a 400 Gbit/s port for each GPU, as in a DGX H100


class Cluster(Part):
    """Memory is of one worker: a GPU's, or its share of a machine's. What is left out is not checked."""

    gpu: str | None = Field(default=None, description=f"one of {', '.join(GPUS)}")
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    cpu_memory_gb: float | None = Field(default=None, gt=0, description="of the machine, for each worker")
    workers: int | None = Field(default=None, ge=1, description="at most; null: train.workers")
    tflops: float | None = Field(default=None, gt=0, description="dense, in the precision of the run")
    memory_gb_s: float | None = Field(default=None, gt=0)
    interconnect_gb_s: float | None = Field(
        default=None, gt=0, description="of one worker in one direction; across nodes it is their network's"
    )
    efficiency: float = Field(
        default=EFFICIENCY, gt=0, le=1, description="share of tflops that a step reaches"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(f"gpu={self.gpu} is not known; there is {', '.join(GPUS)}; or give its numbers")
        return self

    @property
    def has_gpus(self) -> bool:
        return self.gpu is not None or self.gpu_memory_gb is not None

    def filled_in(self, precision: str, workers: int) -> Cluster:
        """With the numbers of the GPU where none are given; beyond one node its network is what links."""
        if self.gpu is None:
            return self
        gpu = GPUS[self.gpu]
        link_gb_s = gpu.link_gb_s if workers <= GPUS_PER_NODE else min(gpu.link_gb_s, NETWORK_GB_S)
        known = {
            "gpu_memory_gb": gpu.memory_gb,
            "tflops": gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops,
            "memory_gb_s": gpu.memory_gb_s,
            "interconnect_gb_s": link_gb_s,
        }
        return self.model_copy(update={k: v for k, v in known.items() if getattr(self, k) is None})


def declared_cluster(given: str, precision: str, workers: int) -> Cluster:
    """given: a GPU's name or a file. ConfigError for what a file holds; UserError for neither."""
    if given in GPUS:
        return Cluster(gpu=given).filled_in(precision, workers)
    if not Path(given).is_file():
        raise UserError(
            f"--cluster {given}: no such GPU or file; there is {', '.join(GPUS)}, or a YAML file with any of "
            f"{', '.join(Cluster.model_fields)}"
        )
    return load_as(Cluster, given).filled_in(precision, workers)
