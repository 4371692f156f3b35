"""Factorisations, Fourier transforms and recurrent cells."""

from __future__ import annotations

import math

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import log2, specs_in


def _thirds(call: Call, thirds: int) -> Cost:
    """``thirds``/3·n³ for every square matrix in the batch (Golub and Van Loan, Matrix Computations)."""
    matrix = call.inputs[0]
    return call.moves(thirds * matrix.numel * matrix.shape[-1] // 3)


def _file(thirds: int, names: str) -> None:
    def formula(call: Call) -> Cost:
        return _thirds(call, thirds)

    register(*aten(names), kind="other")(formula)


_file(1, "cholesky linalg_cholesky linalg_cholesky_ex")
_file(
    2,
    "linalg_lu_factor linalg_lu_factor_ex linalg_lu _lu_with_info _linalg_det _linalg_slogdet linalg_ldl_factor_ex",
)
_file(3, "cholesky_inverse")
_file(4, "linalg_qr geqrf linalg_householder_product ormqr linalg_lstsq")
_file(6, "linalg_inv_ex inverse linalg_inv")
_file(28, "_linalg_eigh linalg_eigh")
_file(63, "_linalg_svd linalg_svd linalg_pinv linalg_eig _linalg_eigvals")


# The matrix among the arguments, and how many triangular systems are solved.
_SOLVES = {
    "linalg_solve_triangular": ("self", 1),
    "triangular_solve": ("A", 1),
    "cholesky_solve": ("input2", 2),
    "_cholesky_solve_helper": ("A", 2),
    "linalg_lu_solve": ("LU", 2),
    "linalg_ldl_solve": ("LD", 2),
}


@register(*aten(" ".join(_SOLVES)), kind="other")
def factored_solve(call: Call) -> Cost:
    """n² for every right-hand side and triangular system: a product and a difference for each of n·(n-1)/2 terms, and n
    quotients (Golub and Van Loan)."""
    matrix, systems = _SOLVES[call.name.removeprefix("aten::").removesuffix(".default")]
    return call.moves(systems * call.outputs[0].numel * call[matrix].shape[-1])


@register("aten::_linalg_solve_ex", kind="other")
def solve(call: Call) -> Cost:
    """2/3·n³ for the factors and two triangular systems for every right-hand side."""
    matrix = call["A"]
    return call.moves(2 * (matrix.numel // 3 + call.outputs[0].numel) * matrix.shape[-1])


@register(*aten("_cudnn_rnn miopen_rnn lstm gru rnn_tanh rnn_relu"), kind="matmul", unit="tensor")
def recurrent_layers(call: Call) -> Cost:
    """Every weight matrix meets every row, of all steps and sequences, once: 2·rows·weights. Gates are left out, and
    weights are taken as read once, which holds while they stay on chip from step to step."""
    data = call["input"] or call["data"]
    matrices = [spec for spec in specs_in(call["weight"] or call["params"]) if spec.ndim == 2]
    rows = math.prod(data.shape[:-1])
    return call.moves(2 * rows * sum(spec.numel for spec in matrices))


@register(*aten("linalg_matrix_exp matrix_exp"), kind="matmul")
def matrix_exp(call: Call) -> Cost:
    """Scaling and squaring with a Taylor polynomial of degree 18: five products (Bader et al., 2019)."""
    matrix = call["self"]
    return call.moves(10 * matrix.numel * matrix.shape[-1])


@register(*aten("_fft_r2c _fft_c2r _fft_c2c"), kind="other")
def fft(call: Call) -> Cost:
    """5·n·log2 n for a complex transform of n points, half for a real one (Cooley and Tukey, 1965)."""
    source, dims = call["self"], call["dim"]
    real = call.name != "aten::_fft_c2c"
    full = call.outputs[0] if call.name == "aten::_fft_c2r" else source
    levels: Size = sum(log2(full.shape[dim]) for dim in dims)
    flops = 5 * full.numel * levels
    return call.moves(flops // 2 if real else flops)


@register(*aten("_thnn_fused_lstm_cell _thnn_fused_gru_cell"), kind="pointwise")
def recurrent_cell(call: Call) -> Cost:
    """Gates after their matmuls: two sums and an activation (six operations) an element of the gates."""
    return call.moves(6 * call["input_gates"].numel)


@register(*aten("_thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell_backward"), kind="pointwise")
def recurrent_cell_backward(call: Call) -> Cost:
    """Derivatives of the gates: six operations an element of the workspace."""
    return call.moves(6 * call.input_numel())


@register("aten::linalg_cross", kind="pointwise")
def cross(call: Call) -> Cost:
    """Two products and a difference an element."""
    return call.moves(3 * call.output_numel())
