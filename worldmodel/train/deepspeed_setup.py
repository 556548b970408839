"""DeepSpeed as all engines set it up; nobody else imports it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from typing import Any

import torch

from worldmodel.config import RunConfig


def deepspeed_settings(cfg: RunConfig, micro_batches: int, *, is_compiled: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": cfg.data.batch_clips,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": cfg.optim.clip_norm,
        "bf16": {"enabled": cfg.train.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        # Its own optimizer for the host is compiled at start; torch's fused one is there.
        "zero_force_ds_cpu_optimizer": False,
        # Sums over ranks and micro-batches in bf16 would cost parity with one process more than they save.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": cfg.train.zero_stage,
            # Persistent full copies would go stale in the teacher, whose shards change behind DeepSpeed's
            # back.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "overlap_comm": False,
            "contiguous_gradients": True,
            # Its own linear layer lets go of a gathered weight between forward and backward. Weights that
            # stay whole need none of that, and spare its calls.
            "memory_efficient_linear": cfg.train.gather == "block" and not is_compiled,
            "reduce_bucket_size": 5_000_000,
        },
    }


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed quietly. On CPU it would compile a shared-memory operator at start; gloo does not
    need it."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", module="deepspeed")
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # Names of ranges for a profiler of GPUs, made at some thousand calls a step.
        deepspeed.utils.nvtx.enable_nvtx = False
        # By name in sys.modules: as an attribute, deepspeed.comm.torch is the torch package.
        vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    return deepspeed
