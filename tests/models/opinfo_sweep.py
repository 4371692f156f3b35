"""Every operator of PyTorch's own operator database, compiled and compared with eager execution.

    python tests/models/opinfo_sweep.py                         # float32, gradients included
    python tests/models/opinfo_sweep.py --dtypes bfloat16 int64 bool --only add softmax
    python tests/models/opinfo_sweep.py --shard 0/2             # half of the operators

All samples of an operator and type are compiled as one function, so that one C++ build serves them. A failure is
narrowed to its first failing sample. The exit status is the number of failing operators, at most 100.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import tree_flatten, tree_map

#: Operators whose result eager execution doesn't define, or that aren't functions of tensors.
UNDEFINED = frozenset(
    [
        "empty",
        "empty_like",
        "empty_strided",
        "empty_permuted",
        "new_empty",
        "new_empty_strided",
        "resize_",
        "resize_as_",
        "item",
        "equal",
        "allclose",
        "is_pinned",
        "tolist",
    ]
)
#: Operators that draw random numbers outside of the default generator's order, or whose factors are unique only up to
#: sign or basis, so that two right answers may differ.
NOT_UNIQUE = frozenset(
    [
        "svd",
        "linalg.svd",
        "linalg.eig",
        "linalg.eigh",
        "pca_lowrank",
        "svd_lowrank",
        "geqrf",
        "linalg.qr",
        "qr",
        "ormqr",
        "linalg.householder_product",
        "lobpcg",
    ]
)

#: Library calls whose fake result has other strides than the real one: the compiled graph keeps the traced strides.
TRACED_STRIDES = frozenset(["nn.functional.max_unpool1d", "nn.functional.max_unpool2d", "nn.functional.max_unpool3d"])

#: Integer images: eager execution interpolates in fixed point, a kernel in float32, and the last bit may differ.
FIXED_POINT = frozenset(["nn.functional.interpolate", "nn.functional.upsample_bilinear"])

#: Normalising one element by its own deviation multiplies rounding by 1 / sqrt(eps): (relative, absolute) tolerance.
ILL_CONDITIONED = dict.fromkeys(
    [
        "native_layer_norm",
        "nn.functional.layer_norm",
        "nn.functional.group_norm",
        "nn.functional.instance_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "nn.functional.batch_norm",
        "nn.functional.normalize",
    ],
    (2e-3, 2e-3),
)

#: (relative, absolute) tolerance by type. Float32 allows for another order of summation and another library's last
#: digits; bfloat16 for the rounding between operators that eager execution has and a fused kernel hasn't.
TOLERANCES = {
    torch.float32: (2e-4, 1e-4),
    torch.float64: (1e-9, 1e-10),
    torch.bfloat16: (4e-2, 4e-2),
    torch.float16: (6e-3, 6e-3),
}


@dataclass(frozen=True)
class Failure:
    """What went wrong with an operator: ``kind`` is "result", "gradient", "crash" or "refused by the compiler"."""

    op: str
    dtype: torch.dtype
    sample: int
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.op} {str(self.dtype)[6:]} sample {self.sample}: {self.kind}: {self.message}"


class TookTooLong(Exception):
    """An operator used up its seconds."""


def full_name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def swept_ops(only: Sequence[str] = ()) -> list[OpInfo]:
    """The database without operators that can't be compared; with ``only``, those of these names."""
    ops = [op for op in op_db if op.name not in UNDEFINED | NOT_UNIQUE and not op.name.startswith("jiterator")]
    return [op for op in ops if not only or op.name in only or full_name(op) in only]


def samples_of(op: OpInfo, dtype: torch.dtype, count: int, requires_grad: bool) -> list[SampleInput]:
    """The first ``count`` samples that eager execution accepts, spread over the list of samples."""
    torch.manual_seed(0)
    found = []
    # The database would look through the whole stack and its sources for a unittest, of which there is none.
    with warnings.catch_warnings(), mock.patch("inspect.stack", lambda: []):
        warnings.simplefilter("ignore")
        for k, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=requires_grad)):
            if k >= 40:
                break
            found.append(sample)
    if len(found) > count:
        found = [found[round(k * (len(found) - 1) / max(count - 1, 1))] for k in range(count)]
    return found


def _copies(samples: list[SampleInput]) -> list[tuple[Any, Any, Any]]:
    def copy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (
                value.detach().clone().requires_grad_(value.requires_grad) if value.layout == torch.strided else value
            )
        return value

    return [tree_map(copy, (s.input, s.args, s.kwargs)) for s in samples]


def _leaves(tree: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]


def _gradients(outputs: Any, inputs: Any) -> list[torch.Tensor | None]:
    roots = [o for o in _leaves(outputs) if o.requires_grad]
    wanted = [i for i in _leaves(inputs) if i.requires_grad]
    if not roots or not wanted:
        return []
    torch.manual_seed(1)
    tangents = [torch.randn(o.shape, dtype=o.dtype) for o in roots]
    return list(torch.autograd.grad(roots, wanted, tangents, allow_unused=True))


def compare(ours: Any, eager: Any, tolerance: tuple[float, float], strides: bool = True) -> str | None:
    """The first difference, or None. Strides count: a caller may rely on them."""
    mine, theirs = _leaves(ours), _leaves(eager)
    if len(mine) != len(theirs):
        return f"{len(mine)} tensors instead of {len(theirs)}"
    for a, b in zip(mine, theirs):
        if a.layout != torch.strided or a.is_quantized:
            continue
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}"
        if strides and a.numel() and a.stride() != b.stride():
            sized = [d for d in range(a.dim()) if a.shape[d] != 1]
            if [a.stride(d) for d in sized] != [b.stride(d) for d in sized]:
                return f"strides {a.stride()} instead of {b.stride()} of shape {list(a.shape)}"
        rtol, atol = tolerance if a.is_floating_point() or a.is_complex() or tolerance[1] >= 1 else (0, 0)
        try:
            torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as difference:
            return " ".join(str(difference).split())
    return None


def _check(
    op: OpInfo, dtype: torch.dtype, samples: list[SampleInput], first: int, gradients: bool, options: dict[str, Any]
) -> Failure | None:
    name = full_name(op)
    tolerance = TOLERANCES.get(dtype, TOLERANCES[torch.float32])
    if op.name in ILL_CONDITIONED and dtype == torch.float32:
        tolerance = ILL_CONDITIONED[op.name]
    if op.name in FIXED_POINT and dtype == torch.uint8:
        tolerance = (0, 1)
    if op.name == "div" and dtype == torch.bfloat16:
        tolerance = (2e-2, 1)  # eager rounds the quotient to bfloat16 before it is cut to an integer

    def function(values: list[tuple[Any, Any, Any]]) -> list[Any]:
        return [op.op(i, *a, **k) for i, a, k in values]

    theirs_in, ours_in = _copies(samples), _copies(samples)
    torch.manual_seed(0)
    try:
        eager = function(theirs_in)
        eager_gradients = _gradients(eager, theirs_in) if gradients else []
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    torch._dynamo.reset()
    torch.manual_seed(0)
    try:
        ours = torch.compile(function, backend="rooffuse", options=options)(ours_in)
    except Exception as error:
        return Failure(name, dtype, first, "crash", _last_words(error))
    difference = compare(ours, eager, tolerance, op.name not in TRACED_STRIDES) or compare(
        ours_in, theirs_in, tolerance
    )
    if difference:
        return Failure(name, dtype, first, "result", difference)
    if gradients:
        try:
            difference = compare(_gradients(ours, ours_in), eager_gradients, tolerance, strides=False)
        except Exception as error:
            return Failure(name, dtype, first, "crash", "backward: " + _last_words(error))
        if difference:
            return Failure(name, dtype, first, "gradient", difference)
    return None


def _last_words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:600]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/codegen/" in f.filename or "/fuser/" in f.filename or "/passes/" in f.filename]
    cause = error.__cause__
    place = (
        f" at {ours[-1].filename.rsplit('/', 2)[-2]}/{ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno}"
        if ours
        else ""
    )
    return f"{type(error).__name__}{place}: {text}" + (f" from {type(cause).__name__}: {cause}" if cause else "")


def check_op(
    op: OpInfo, dtype: torch.dtype, count: int = 4, seconds: int = 60, options: dict[str, Any] | None = None
) -> Failure | None:
    """Compare ``op`` with eager on ``count`` samples; None where they agree (or eager refuses the samples)."""
    options = {"strict": True, **(options or {})}
    gradients = dtype == torch.float32 and op.supports_autograd

    def late(*_: Any) -> None:
        raise TookTooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = samples_of(op, dtype, count, gradients)
            found = _check(op, dtype, samples, 0, gradients, options)
            if found is None or len(samples) < 2:
                return found
            for k, sample in enumerate(samples):
                single = _check(op, dtype, [sample], k, gradients, options)
                if single is not None:
                    return single
            return Failure(found.op, dtype, -1, found.kind, "only all samples together: " + found.message)
    except TookTooLong as late_error:
        return Failure(full_name(op), dtype, 0, "slow", str(late_error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def sweep(
    ops: Sequence[OpInfo],
    dtypes: Sequence[torch.dtype],
    count: int,
    seconds: int,
    options: dict[str, Any] | None = None,
) -> Iterator[tuple[OpInfo, Failure | None]]:
    """Check each operator with each type that it supports."""
    for op in ops:
        for dtype in dtypes:
            if dtype in op.supported_dtypes("cpu"):
                yield op, check_op(op, dtype, count, seconds, options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--eager-casts", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    logging.getLogger("rooffuse").setLevel(logging.ERROR)
    part, parts = map(int, arguments.shard.split("/"))
    ops = swept_ops(arguments.only)[part::parts]
    failures, start, count = [], time.time(), 0
    options = {"eager_casts": True} if arguments.eager_casts else {}
    for _, failure in sweep(
        ops, [getattr(torch, d) for d in arguments.dtypes], arguments.samples, arguments.seconds, options
    ):
        count += 1
        if failure:
            failures.append(failure)
            print(failure, flush=True)
    print(f"{count} checks, {len(failures)} failures, {time.time() - start:.0f} s")
    return min(len(failures), 100)


if __name__ == "__main__":
    sys.exit(main())
