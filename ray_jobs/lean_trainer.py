"""Ray Train's trainer without helpers that this job never calls, each a process with seconds of imports."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchTrainer

UNUSED = {
    # Hands out shards of a trainer's datasets; here each rank makes its own stream (docs/decisions/001).
    "DatasetsCallback",
    # Makes a folder of Ray's the working directory of ranks alone: what a config names by a relative path
    # would be one place for decoders and another for them.
    "WorkingDirectorySetupCallback",
}
# Frees the workers' CPUs when the controller dies; a cluster of one node goes with its driver anyway.
UNUSED_ON_ONE_NODE = {"PlacementGroupCleanerCallback"}


class LeanTrainer(TorchTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        """Ray's own list, shortened. Should Ray rename these, all of them run again and nothing breaks."""
        one_node = len(ray.nodes()) == 1
        unused = UNUSED | (UNUSED_ON_ONE_NODE if one_node else set())
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]
