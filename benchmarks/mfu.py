"""`worldmodel bench mfu`: benchmarks/gpu/mfu.py, filed like the others. Without a GPU only --smoke runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from ray_jobs.bench import Measured
from ray_jobs.errors import UserError
from ray_jobs.runtime_env import ROOT

SCRIPT = Path(__file__).parent / "gpu" / "mfu.py"


def run(smoke: bool) -> Measured:
    """Figures by model: mfu_with_teacher, mfu_student_only, over_bare."""
    if not smoke and not torch.cuda.is_available():
        raise UserError("worldmodel bench mfu: no CUDA device here; run it on a machine with one, or --smoke")
    script = _script()
    overrides, pairs, steps = (script.SMALL, 1, 1) if smoke else (script.FIVE_SECONDS, script.PAIRS, 1)
    clips = 2 if smoke else None
    found = script.measure(
        list(script.CLIPS), clips=clips, pairs=pairs, steps=steps, overrides=overrides, profile=False
    )
    return Measured(
        figures=found["figures"],
        raw=found["raw"],
        n=pairs,
        baseline={"matrix_tflops": found["matrix_tflops"]},
        config="---\n".join(part["config"] for part in found["raw"].values()),
    )


def _script() -> ModuleType:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # it imports benchmarks.makers
    spec = importlib.util.spec_from_file_location("benchmarks_gpu_mfu", SCRIPT)
    assert spec is not None, f"{SCRIPT} is a Python file"
    assert spec.loader is not None, f"{SCRIPT} is a Python file"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
