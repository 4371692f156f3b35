"""The verifier refuses each kind of broken kernel, and says which rule it breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rooffuse.codegen.errors import InvalidKernel, NotLowerable
from rooffuse.codegen.index import symbol
from rooffuse.codegen.ir import Axis, Buffer, Compute, Const, Index, Kernel, Load, Nest, Reduce, Store
from rooffuse.codegen.lower_strips import refuse_early_sums
from rooffuse.codegen.verify import verify
from sympy import Integer

P, R = symbol("p0"), symbol("r0")
F32, I64, BOOL = torch.float32, torch.int64, torch.bool

BUFFERS = (Buffer("i0", F32, 12), Buffer("o0", F32, 3))
AXES = (Axis(P, 3), Axis(R, 4, reduction=True))
BODY = (
    Load("v0", F32, "i0", 4 * P + R),
    Compute("v1", F32, "exp", ("v0",)),
    Reduce("v2", F32, "sum", "v1"),
    Store("o0", P, "v2"),
)


def kernel(body=BODY, axes=AXES, buffers=BUFFERS) -> Kernel:
    return Kernel("k", tuple(buffers), (Nest(tuple(axes), tuple(body)),))


def with_statement(at: int, stmt) -> Kernel:
    body = list(BODY)
    body[at:at] = [stmt]
    return kernel(body)


def test_sound_kernel_passes() -> None:
    sound = kernel()
    assert verify(sound) is sound


@pytest.mark.parametrize(
    "broken, rule",
    [
        (kernel(buffers=(BUFFERS[0], replace(BUFFERS[1], name="i0"))), "two buffers share a name"),
        (kernel(buffers=(*BUFFERS, Buffer("i1", F32, 1))), "buffer i1 is neither read nor written"),
        (kernel(axes=AXES[::-1]), "parallel, then strip, then reduction"),
        (
            kernel(
                axes=(Axis(P, 3), Axis(P, 4, reduction=True)),
                body=(Load("v0", F32, "i0", P), Reduce("v2", F32, "sum", "v0"), BODY[3]),
            ),
            "distinct symbols",
        ),
        (kernel(axes=(Axis(P, 0), AXES[1])), "sizes of at least one"),
        (with_statement(0, Compute("v9", F32, "exp", ("v0",))), "v0 is used before it is bound"),
        (with_statement(1, BODY[0]), "v0 is bound twice"),
        (kernel(body=BODY[:3]), "neither read nor written"),
        (with_statement(1, Const("v9", torch.bfloat16, 1.0)), "a storage type, not a compute type"),
        (with_statement(0, Index("v9", I64, symbol("q7") + P)), "neither an axis nor a value"),
        (with_statement(0, Load("v9", F32, "i5", P)), "i5 is no buffer"),
        (with_statement(0, Load("v9", F32, "i0", 5 * P + R)), "outside of 12 elements"),
        (with_statement(0, Load("v9", F32, "i0", P - 1)), "index runs over -1..1"),
        (with_statement(4, Store("o0", P + 1, "v2")), "outside of 3 elements"),
        (with_statement(1, Load("v9", F32, "i0", P, "v0")), "mask v0 isn't a truth value"),
        (with_statement(0, Load("v9", torch.float64, "i0", P)), "a load of torch.float32 gives torch.float32"),
        (with_statement(1, Compute("v9", I64, "cast", ("v0", "v0"))), "cast takes 1 arguments"),
        (with_statement(1, Compute("v9", F32, "frobnicate", ("v0",))), "frobnicate is no operation"),
        (with_statement(1, Compute("v9", F32, "where", ("v0", "v0", "v0"))), "condition isn't a truth value"),
        (with_statement(1, Reduce("v9", F32, "median", "v0")), "median is no reduction"),
    ],
)
def test_broken_kernel_is_refused(broken: Kernel, rule: str) -> None:
    with pytest.raises(InvalidKernel, match=rule):
        verify(broken)


def test_operands_of_different_types_are_refused() -> None:
    body = [BODY[0], Const("v8", I64, 1), Compute("v9", F32, "add", ("v0", "v8")), *BODY[1:]]
    with pytest.raises(InvalidKernel, match="operands have different types"):
        verify(kernel(body))


def test_store_of_another_type_is_refused() -> None:
    body = [*BODY[:3], Const("v9", I64, 1), Store("o0", P, "v9")]
    with pytest.raises(InvalidKernel, match=r"a torch\.int64 is stored to torch\.float32"):
        verify(kernel(body))


def test_nest_without_store_is_refused() -> None:
    nests = (Nest(AXES, BODY), Nest((Axis(P, 3),), (Load("v0", F32, "i0", P),)))
    with pytest.raises(InvalidKernel, match="a nest stores nothing"):
        verify(Kernel("k", BUFFERS, nests))


Q = symbol("q0")
STRIP = (Axis(P, 3), Axis(Q, 2, strip=True), Axis(R, 2, reduction=True))
COLUMNS = (
    Load("v0", F32, "i0", 4 * P + 2 * Q + R),
    Reduce("v1", F32, "sum", "v0", strip=True),
    Compute("v2", F32, "exp", ("v1",)),
    Store("o0", 2 * P + R, "v2"),
)


def strip_kernel(*body, axes=STRIP) -> Kernel:
    return Kernel("k", (BUFFERS[0], Buffer("o0", F32, 6)), (Nest(axes, body),))


def test_sum_over_a_strip_passes() -> None:
    assert verify(strip_kernel(*COLUMNS))
    assert Nest(STRIP, COLUMNS).scopes["v2"] == {P, R}
    once = (Load("v0", F32, "i0", 2 * P + Q), COLUMNS[1], COLUMNS[2], Store("o0", P, "v2"))
    assert verify(strip_kernel(*once)) and Nest(STRIP, once).scopes["v2"] == {P}


@pytest.mark.parametrize(
    "broken, rule",
    [
        (strip_kernel(*COLUMNS, axes=(STRIP[1], STRIP[0], STRIP[2])), "parallel, then strip, then reduction"),
        (strip_kernel(*COLUMNS, axes=(STRIP[0], Axis(Q, 2), STRIP[2])), "the nest has no strip axis"),
        (strip_kernel(COLUMNS[0], replace(COLUMNS[1], op="prod"), *COLUMNS[2:]), "over a strip there is only"),
        (strip_kernel(*COLUMNS, axes=(*STRIP, Axis(symbol("r1"), 2, reduction=True))), "of whole rows"),
        (
            strip_kernel(*COLUMNS[:2], Compute("v2", F32, "add", ("v0", "v1")), COLUMNS[3]),
            "known only after the strip",
        ),
        (
            strip_kernel(*COLUMNS[:2], Reduce("v2", F32, "sum", "v1"), COLUMNS[3]),
            "it needs what the strip ends with",
        ),
    ],
)
def test_broken_strip_is_refused(broken: Kernel, rule: str) -> None:
    with pytest.raises(InvalidKernel, match=rule):
        verify(broken)


def test_a_column_sum_is_stored_once_a_strip() -> None:
    """Where all rows are equal no value varies along the strip, but the place that it goes to does."""
    body = (Load("v0", F32, "i0", R), *COLUMNS[1:3])
    refuse_early_sums(body, STRIP, "v2", (P, R))
    with pytest.raises(NotLowerable, match="at each row of its strip"):
        refuse_early_sums(body, STRIP, "v2", (P, Q, R))


WIDE = (Axis(P, 3), Axis(Q, 2, reduction=True), Axis(R, 2, reduction=True))
SEGMENTS = (
    Load("v0", F32, "i0", 4 * P + 2 * Q + R),
    Reduce("v1", F32, "max", "v0", along=(R,)),
    Store("o0", 2 * P + Q, "v1"),
)


def test_segment_reduction_passes() -> None:
    assert verify(strip_kernel(*SEGMENTS, axes=WIDE))
    assert Nest(WIDE, SEGMENTS).scopes["v1"] == {P, Q}
    assert "reduce_max(v0 along r0)" in str(strip_kernel(*SEGMENTS, axes=WIDE))


@pytest.mark.parametrize("along, op, axes", [
    ((Q, R), "max", WIDE), ((P,), "max", WIDE), ((R,), "expsum", WIDE),
    ((R,), "sum", (WIDE[0], replace(STRIP[1]), WIDE[2])),
])
def test_broken_segments_are_refused(along, op: str, axes) -> None:
    body = (SEGMENTS[0], replace(SEGMENTS[1], along=along, op=op), SEGMENTS[2])
    with pytest.raises(InvalidKernel, match="some of the reduction axes|no segment"):
        verify(strip_kernel(*body, axes=axes))


def test_reduction_without_axis_is_refused() -> None:
    body = (Load("v0", F32, "i0", 4 * P), Reduce("v2", F32, "sum", "v0"), BODY[3])
    with pytest.raises(InvalidKernel, match="no reduction axis"):
        verify(kernel(body, axes=AXES[:1]))


def test_masked_access_may_reach_outside() -> None:
    body = (Const("v8", BOOL, False), Load("v0", F32, "i0", 4 * P + R + 100, "v8"), *BODY[1:])
    assert verify(kernel(body))


def test_message_names_kernel_and_statement() -> None:
    with pytest.raises(InvalidKernel, match=r"k: `v9:float32 = i0\[12\]`"):
        verify(with_statement(0, Load("v9", F32, "i0", Integer(12))))
