"""Dead-code elimination."""

from __future__ import annotations

from rooffuse.passes.graph import is_impure
from torch.fx import GraphModule


def dce(gm: GraphModule) -> GraphModule:
    """Remove nodes without users, except those with an effect (mutation, assertion, random draw, opaque call).

    Requires: nothing. Ensures: every remaining pure node other than a placeholder has a user; placeholders stay,
    since they are the calling convention; constants that nothing reads are deleted from the module.
    """
    for node in reversed(gm.graph.nodes):
        if not node.users and not is_impure(node):
            gm.graph.erase_node(node)
    used = {node.target for node in gm.graph.find_nodes(op="get_attr")}
    for name in [name for name in (*gm._buffers, *gm._parameters) if name not in used]:
        delattr(gm, name)
    return gm
