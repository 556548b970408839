"""Batches of one rank for all that share its clips: they are decoded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist

from worldmodel.batch import LatentBatch
from worldmodel.model.sequence_parallel import SequenceGroup


def hand_round(
    stream: Iterator[list[LatentBatch]] | None, ranks: SequenceGroup | None
) -> Iterator[list[LatentBatch]]:
    """The stream of the first rank of the group on each of them. stream: None on the others."""
    if ranks is None:
        assert stream is not None, "a rank of its own brings its stream"
        yield from stream
        return
    first = dist.get_global_rank(ranks.group, 0)
    while True:
        batches = [None if stream is None else next(stream, None)]
        dist.broadcast_object_list(batches, src=first, group=ranks.group)
        if batches[0] is None:
            return
        yield batches[0]
