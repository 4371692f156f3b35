"""PyTorch's operator database against eager: a sample of each operator here, everything behind the ``slow`` marker.

``python tests/models/opinfo_sweep.py`` runs the whole of it from the command line.
"""

from __future__ import annotations

import pytest
import torch

from .opinfo_sweep import Failure, check_op, full_name, swept_ops

#: Operators that kernels are generated for in one way or another. The rest of the database runs as library calls; the
#: full sweep has it.
GENERATED = """
abs acos acosh add addcdiv addcmul all amax amin aminmax any arange argmax argmin asin asinh atan atan2 atanh
bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor bool cat ceil chunk clamp
clamp_max clamp_min clone column_stack eye searchsorted bucketize mv dot addr constant_pad_nd copysign cos cosh
deg2rad diag_embed diagonal div dist double einsum eq erf erfc exp exp2 expand expm1 fill flatten flip float floor
floor_divide fmax fmin fmod frac full_like gather ge gradient gt half heaviside hypot index_copy index_fill index_put
index_select int isclose isfinite isinf isnan isneginf ldexp le lerp lgamma linspace log log10 log1p log2 log_softmax
logaddexp logical_and logical_not logit logsumexp lt masked_fill masked.softmax masked.mean max maximum mean meshgrid
min minimum movedim mul nan_to_num nansum narrow native_layer_norm ne neg new_full norm nn.functional.batch_norm
nn.functional.max_pool2d nn.functional.avg_pool2d nn.functional.adaptive_avg_pool2d nn.functional.adaptive_max_pool2d
nn.functional.max_pool1d nn.functional.avg_pool3d nn.functional.interpolate
nn.functional.binary_cross_entropy_with_logits nn.functional.celu nn.functional.cosine_similarity
nn.functional.cross_entropy nn.functional.elu nn.functional.embedding nn.functional.gelu nn.functional.glu
nn.functional.group_norm nn.functional.hardsigmoid nn.functional.hardswish nn.functional.hardtanh
nn.functional.huber_loss nn.functional.instance_norm nn.functional.layer_norm nn.functional.leaky_relu
nn.functional.logsigmoid nn.functional.mish nn.functional.mse_loss nn.functional.nll_loss nn.functional.normalize
nn.functional.one_hot nn.functional.pad nn.functional.pixel_shuffle nn.functional.prelu nn.functional.relu
nn.functional.relu6 nn.functional.rms_norm nn.functional.scaled_dot_product_attention nn.functional.selu
nn.functional.silu nn.functional.smooth_l1_loss nn.functional.softmin nn.functional.softplus nn.functional.softsign
nn.functional.tanhshrink nn.functional.unfold permute pow prod reciprocal remainder repeat reshape roll rot90 round
rsqrt rsub scatter select select_scatter sgn sigmoid sign sin sinh slice slice_scatter softmax split sqrt square
squeeze stack std std_mean sub sum tan tanh tensor_split tile transpose tril triu trunc unbind unfold unfold_copy
unsqueeze var var_mean view where xlogy zeros_like polar fft.ihfft
""".split()
QUICK = [op for op in swept_ops() if op.name in GENERATED]
#: Types beside float32, on the operators where they take a way of their own.
TYPED = """add sub mul div floor_divide remainder fmod pow clamp where cat sum mean prod amax argmax any softmax
nn.functional.layer_norm nn.functional.gelu bitwise_right_shift round masked_fill gather cumsum lerp std""".split()


def _told(failure: Failure | None) -> str:
    return str(failure) if failure else ""


def test_selection_names_operators_that_exist() -> None:
    known = {op.name for op in swept_ops()}
    assert not [name for name in [*GENERATED, *TYPED] if name not in known]


@pytest.mark.parametrize("op", QUICK, ids=full_name)
def test_float32_with_gradients(op) -> None:
    assert not _told(check_op(op, torch.float32, count=2))


def pairs(ops, dtypes) -> list:
    """Operators with the types that they take."""
    return [
        pytest.param(op, d, id=f"{full_name(op)}-{str(d)[6:]}")
        for op in ops
        for d in dtypes
        if d in op.supported_dtypes("cpu")
    ]


@pytest.mark.parametrize(
    "op, dtype",
    pairs(
        [o for o in QUICK if o.name in TYPED and not o.variant_test_name],
        [torch.bfloat16, torch.int64, torch.uint8, torch.bool],
    ),
)
def test_other_types(op, dtype: torch.dtype) -> None:
    assert not _told(check_op(op, dtype, count=2))


@pytest.mark.slow
@pytest.mark.parametrize("op, dtype", pairs(swept_ops(), [torch.float32, torch.bfloat16, torch.int64, torch.bool]))
def test_everything(op, dtype: torch.dtype) -> None:
    assert not _told(check_op(op, dtype, count=5))
