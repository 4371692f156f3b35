"""Factorisations, Fourier transforms and recurrent cells."""

from __future__ import annotations

from .cost import Cost, Size
from .registry import Call, aten, register
from .spec import log2


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
_file(3, "triangular_solve linalg_solve_triangular cholesky_inverse")
_file(4, "linalg_qr geqrf linalg_householder_product ormqr linalg_lstsq")
_file(
    6,
    """linalg_inv_ex inverse linalg_inv _linalg_solve_ex linalg_lu_solve linalg_ldl_solve cholesky_solve
    _cholesky_solve_helper""",
)
_file(28, "_linalg_eigh linalg_eigh")
_file(63, "_linalg_svd linalg_svd linalg_pinv linalg_eig _linalg_eigvals")


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
