"""All formula families. Importing this module files them in the registry."""

from . import (
    attention,
    convolution,
    indexing,
    linalg,
    matmul,
    memory,
    norms,
    optimizers,
    pointwise,
    pooling,
    reductions,
)

FAMILIES = (
    attention,
    convolution,
    indexing,
    linalg,
    matmul,
    memory,
    norms,
    optimizers,
    pointwise,
    pooling,
    reductions,
)
