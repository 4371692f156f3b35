"""Named rewrites of ATen graphs, and memory planning.

A pass takes a ``torch.fx.GraphModule`` over functional ATen operators, as AOTAutograd makes it, and returns one.
``PIPELINE`` lists the passes in order; ``run_passes`` copies the graph once and runs them.
"""

from rooffuse.passes.added_scatters import added_scatters
from rooffuse.passes.channels_last import Layout, channels_last_pass
from rooffuse.passes.complex_pairs import complex_pairs
from rooffuse.passes.equal_extents import EQUAL_EXTENTS_PASS
from rooffuse.passes.exclusive_scans import exclusive_scans
from rooffuse.passes.filled_memory import FILLED_MEMORY_PASS
from rooffuse.passes.foreach import expand_foreach
from rooffuse.passes.graph import hazard_edges
from rooffuse.passes.grouped_heads import grouped_heads
from rooffuse.passes.grouped_products import grouped_products_pass
from rooffuse.passes.interpolations import interpolations_pass
from rooffuse.passes.joined_results import joined_results_pass
from rooffuse.passes.kept_dims import kept_dims
from rooffuse.passes.large_windows import large_windows_pass
from rooffuse.passes.memory_plan import (
    BufferLife,
    MemoryPlan,
    MemoryPlanError,
    check_plan,
    peak_live_bytes,
    plan_memory,
)
from rooffuse.passes.op_sets import GATHERS, LIBRARY, POINTWISE, PRIMITIVES, REDUCTIONS, VIEWS, aot_decompositions
from rooffuse.passes.padded_results import padded_results_pass
from rooffuse.passes.pipeline import CSE_PASS, PIPELINE, Pass, run_passes
from rooffuse.passes.pooled_places import pooled_places
from rooffuse.passes.quick_types import quick_types_pass
from rooffuse.passes.random import RANDOM_PASS
from rooffuse.passes.reduced_pieces import reduced_pieces
from rooffuse.passes.row_limits import RowLimits
from rooffuse.passes.scan_totals import scan_totals
from rooffuse.passes.scatters import scatters_pass
from rooffuse.passes.split_reductions import split_reductions, split_reductions_pass
from rooffuse.passes.split_scans import split_scans, split_scans_pass
from rooffuse.passes.split_softmax import split_softmax, split_softmax_pass
from rooffuse.passes.split_variance import split_variance, split_variance_pass
from rooffuse.passes.strided_places import STRIDED, strided_places
from rooffuse.passes.vector_products import vector_products_pass
from rooffuse.passes.verify import GraphError, verify

__all__ = [
    "CSE_PASS",
    "EQUAL_EXTENTS_PASS",
    "FILLED_MEMORY_PASS",
    "GATHERS",
    "LIBRARY",
    "PIPELINE",
    "POINTWISE",
    "PRIMITIVES",
    "RANDOM_PASS",
    "REDUCTIONS",
    "STRIDED",
    "VIEWS",
    "BufferLife",
    "GraphError",
    "Layout",
    "MemoryPlan",
    "MemoryPlanError",
    "Pass",
    "RowLimits",
    "added_scatters",
    "aot_decompositions",
    "channels_last_pass",
    "check_plan",
    "complex_pairs",
    "exclusive_scans",
    "expand_foreach",
    "grouped_heads",
    "grouped_products_pass",
    "hazard_edges",
    "interpolations_pass",
    "joined_results_pass",
    "kept_dims",
    "large_windows_pass",
    "padded_results_pass",
    "peak_live_bytes",
    "plan_memory",
    "pooled_places",
    "quick_types_pass",
    "reduced_pieces",
    "run_passes",
    "scan_totals",
    "scatters_pass",
    "split_reductions",
    "split_reductions_pass",
    "split_scans",
    "split_scans_pass",
    "split_softmax",
    "split_softmax_pass",
    "split_variance",
    "split_variance_pass",
    "strided_places",
    "vector_products_pass",
    "verify",
]
