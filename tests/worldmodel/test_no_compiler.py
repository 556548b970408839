"""The compiler stays out of a worker that never compiles, and eager code does not notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from worldmodel.train.no_compiler import turn_compiler_off
{off}
weight = torch.ones(3, requires_grad=True)
optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
torch.compile(lambda: weight.sum(), disable={off!r} == "")().backward()
optimizer.step()
loaded = getattr(sys.modules.get("torch._dynamo"), "__file__", None) is not None
print(json.dumps({{"compiler": loaded, "weight": weight.tolist()}}))
"""


def outcome(off: str, **env: str) -> dict:
    program = [sys.executable, "-c", PROGRAM.format(off=off)]
    done = subprocess.run(program, check=True, capture_output=True, text=True, env={**os.environ, **env})
    return json.loads(done.stdout)


def test_a_step_without_the_compiler_is_the_same_step():
    with_it, without = outcome(""), outcome("turn_compiler_off()")
    assert with_it["compiler"]  # else there is nothing to keep out, and the stand-in can go
    assert not without["compiler"]
    assert without["weight"] == with_it["weight"]


def test_where_torchao_is_installed_the_compiler_stays(tmp_path):
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert outcome("turn_compiler_off()", PYTHONPATH=paths)["compiler"]
