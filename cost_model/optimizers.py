"""Lists of tensors (``_foreach_*``), fused optimisers and collectives."""

from __future__ import annotations

from .cost import Cost, Size
from .pointwise import FLOPS_PER_ELEMENT
from .registry import Call, aten, register
from .spec import specs_in

_FOREACH_POINTWISE = """
    abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac lerp
    lgamma log log10 log1p log2 maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh sqrt sub tan
    tanh trunc
    """


def _elements(call: Call) -> Size:
    """Elements of the first list of tensors."""
    return sum(spec.numel for spec in specs_in(call["self"]))


def _register_foreach() -> None:
    for name in _FOREACH_POINTWISE.split():

        def formula(call: Call, flops: int = FLOPS_PER_ELEMENT[name]) -> Cost:
            return call.moves(flops * _elements(call))

        register(f"aten::_foreach_{name}", kind="pointwise")(formula)


_register_foreach()


@register(*aten("_foreach_norm _foreach_max _foreach_powsum"), kind="reduction")
def foreach_reduction(call: Call) -> Cost:
    """Square and add (or compare) for every element."""
    return call.moves((1 if call.name == "aten::_foreach_max" else 2) * _elements(call))


@register("aten::_foreach_copy", kind="copy")
def foreach_copy(call: Call) -> Cost:
    """Reads the sources, writes the destinations."""
    return Cost(0, call.read_bytes(("self",)), call.written_bytes())


@register("aten::_foreach_clone", kind="copy")
def foreach_clone(call: Call) -> Cost:
    """Reads and writes every list item."""
    return call.moves(0)


@register("aten::_foreach_zero", kind="constant")
def foreach_zero(call: Call) -> Cost:
    """Written, never read."""
    return Cost(0, 0, call.written_bytes())


@register(*aten("_amp_foreach_non_finite_check_and_unscale _amp_update_scale"), kind="optimizer")
def amp(call: Call) -> Cost:
    """Unscaling of gradients: a product and a test for infinity."""
    return call.moves(2 * _elements(call))


def _fused(call: Call, flops: int) -> Cost:
    """Gradients are read; they are written back only when a scaler makes the kernel unscale them."""
    cost = call.moves(flops * _elements(call))
    if call["grad_scale"] is not None or not call.in_place:
        return cost
    return Cost(cost.flops, cost.bytes_read, cost.bytes_written - sum(spec.nbytes for spec in specs_in(call["grads"])))


@register(*aten("_fused_adam _fused_adamw"), kind="optimizer")
def fused_adam(call: Call) -> Cost:
    """Decay (2), first moment (3), second moment (4), denominator (3), step (2); AMSGrad compares once more."""
    return _fused(call, 15 if call["amsgrad"] else 14)


@register("aten::_fused_sgd", kind="optimizer")
def fused_sgd(call: Call) -> Cost:
    """Decay (2), momentum (2), step (2)."""
    return _fused(call, 6)


@register("aten::_fused_adagrad", kind="optimizer")
def fused_adagrad(call: Call) -> Cost:
    """Decay (2), sum of squares (2), root, sum, quotient and step (5)."""
    return _fused(call, 9)


def _functional(names: str) -> tuple[str, ...]:
    return tuple(f"{space}::{name}" for space in ("_c10d_functional", "c10d_functional") for name in names.split())


@register(
    *_functional("all_reduce all_reduce_coalesced reduce_scatter_tensor reduce_scatter_tensor_coalesced"),
    "_c10d_functional::reduce_scatter_tensor_out",
    kind="collective",
)
def reducing_collective(call: Call) -> Cost:
    """Local memory traffic and one addition an element of every input; time on the link is not part of a `Cost`."""
    return call.moves(sum(spec.numel for spec in call.inputs))


@register(
    *_functional("all_gather_into_tensor all_gather_into_tensor_coalesced all_to_all_single broadcast")
    + tuple(f"_c10d_functional::{name}" for name in ("all_gather_into_tensor_out", "isend", "irecv", "batch_p2p_ops")),
    kind="collective",
)
def moving_collective(call: Call) -> Cost:
    """Local memory traffic only."""
    return call.moves(0)


@register(*_functional("wait_tensor"), "_c10d_functional::_wrap_tensor_autograd", kind="collective")
def wait_tensor(call: Call) -> Cost:
    """Synchronisation moves nothing."""
    return Cost.zero()
