"""What AOTAutograd's joint graph of a forward and a backward pass is cut into, and what is kept in between."""
from __future__ import annotations

from typing import Any

from rooffuse.passes import pooled_places
from rooffuse.passes.extremes import compared_with_extremes
from torch.fx import GraphModule


def partition_joint(joint: GraphModule, *args: Any, **kwargs: Any) -> tuple[GraphModule, GraphModule]:
    """Forward and backward, with the least to keep in between; but a value that the gradient of a maximum looks for is
    kept, since computed again in the backward it may not equal the maximum."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch.utils.checkpoint import CheckpointPolicy

    joint = pooled_places(joint)
    for node in compared_with_extremes(joint.graph):
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return min_cut_rematerialization_partition(joint, *args, **kwargs)
