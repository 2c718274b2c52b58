"""Call the CPU kernels with tensors: draw dropout seeds, pass arguments, set the number of threads.

Large tensors are contiguous (T, D) in fp32 or bf16, vectors are fp32. Results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from peftlib.acceleration.cpu_compiler import kernels
from peftlib.acceleration.packing import Packing

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
#: Widths must be multiples of this.
LANES = 16
_LEVELS = 1 << 16
#: Sums over rows are computed in this many parts, which most numbers of threads share evenly.
_PARTS = 32


class Dropout(ctypes.Structure):
    """Dropout's rate in units of 2**-16, the factor for kept elements, and the seed."""

    _fields_ = (("threshold", c_uint32), ("factor", c_float), ("seed", c_uint64))

    @classmethod
    def of(cls, p: float) -> Dropout:
        """Draw a seed from torch's generator; at rate 0, draw nothing."""
        dropped = round(p * _LEVELS)
        if dropped == 0:
            return cls(0, 1.0, 0)
        factor = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
        return cls(dropped, factor, int(torch.empty((), dtype=torch.int64).random_()))


NO_DROPOUT = Dropout(0, 1.0, 0)
_Packed = TypeVar("_Packed")


class Beside(NamedTuple, Generic[_Packed]):
    """A low-rank product, dropout(low matrix), to be added to another product.

    Attributes:
        low: (T, rank).
        matrix: (rank, width), packed as the other product's.
        drop: dropout of the product.
    """

    low: torch.Tensor
    matrix: _Packed
    drop: Dropout = NO_DROPOUT


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query", "key", "value")),
        *((name, c_int64) for name in ("query_step", "step")),
        *((name, c_void_p) for name in ("query_bias", "key_bias", "value_bias", "starts")),
        *((name, c_int64) for name in ("examples", "heads", "width", "queries")),
        ("scale", c_float), ("drop", Dropout),
    )  # fmt: skip


class Seen(NamedTuple):
    """Queries, keys and values of packed rows.

    Attributes:
        rows: (T, 3 D); (T, 2 D) without queries, if those are in `query`.
        query: of the first tokens only, (B, D), or None.
        bias: of queries, keys and values, (3 D).
        packing: says which rows are each example's.
    """

    rows: torch.Tensor
    query: torch.Tensor | None
    bias: torch.Tensor
    packing: Packing


def are_there() -> bool:
    """Return whether the kernels can be called on this machine."""
    return kernels() is not None


def fits(dtype: torch.dtype, *widths: int) -> bool:
    """Return whether the kernels support this precision and these widths of layers, heads or vectors."""
    return dtype in _NAMES and all(width % LANES == 0 for width in widths)


def dropout(x: torch.Tensor, drop: Dropout, onto: torch.Tensor | None = None) -> torch.Tensor:
    """Apply dropout to x; if `onto` is given, add the result to it in place."""
    out = torch.empty_like(x) if onto is None else onto
    call("dropout", x.dtype, x, out, onto is not None, x.numel() // x.size(-1), x.size(-1), drop)
    return out


def norm_forward(
    product: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, shift: torch.Tensor,
    eps: float, drop: Dropout, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:  # fmt: skip
    """Compute LayerNorm(residual + dropout(product + bias)).

    Returns:
        The output; the same before weight and shift, if `keep`, else None; and 1 / standard deviation, (T).
    """
    out, normal = torch.empty_like(product), torch.empty_like(product) if keep else None
    rstd = product.new_empty(len(product), dtype=torch.float32)
    call(
        "norm_forward", product.dtype, product, bias, residual, weight, shift, out, normal, rstd, *product.shape, eps,
        drop,
    )  # fmt: skip
    return out, normal, rstd


def norm_backward(
    gradient: torch.Tensor, normal: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, drop: Dropout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of residual and product, (T, D), and those of weight, shift and bias, (3, D)."""
    grad_residual, grad_product = torch.empty_like(gradient), torch.empty_like(gradient)
    sums = _sums(3, len(weight))
    call(
        "norm_backward", gradient.dtype, gradient, normal, rstd, weight, grad_residual, grad_product, sums,
        *gradient.shape, drop, _PARTS,
    )  # fmt: skip
    return grad_residual, grad_product, sums.sum(0)


def gelu_forward(product: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Compute gelu(product + bias), into `out` if given, which may be `product`."""
    out = torch.empty_like(product) if out is None else out
    call("gelu_forward", product.dtype, product, bias, out, *product.shape)
    return out


def gelu_backward(
    above: torch.Tensor, product: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the product, (T, D), written to `out` if given, which may be `above`; and of the bias."""
    out, sums = torch.empty_like(product) if out is None else out, _sums(len(bias))
    call("gelu_backward", product.dtype, above, product, bias, out, sums, *product.shape, _PARTS)
    return out, sums.sum(0)


def attention_forward(seen: Seen, drop: Dropout) -> torch.Tensor:
    """Compute attention, one row per query: (T, D), zero for fillers, or (B, D)."""
    width = len(seen.bias) // 3
    rows = seen.rows if seen.query is None else seen.query
    out = rows.new_empty(len(rows), width)
    if seen.query is None:
        out[seen.packing.real :].zero_()
    call("attention_forward", out.dtype, ctypes.byref(_attention_arguments(seen, drop)), out, None, seen.packing.width)
    return out


def attention_backward(
    seen: Seen, gradient: torch.Tensor, drop: Dropout
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return the gradients of rows, query and bias, in their shapes."""
    grad_rows = torch.empty_like(seen.rows)
    grad_query = None if seen.query is None else torch.empty_like(seen.query)
    grad_rows[seen.packing.real :].zero_()
    sums = _sums(len(seen.bias))
    call(
        "attention_backward", gradient.dtype, ctypes.byref(_attention_arguments(seen, drop)), gradient, None,
        *_qkv_pointers(grad_rows, grad_query), sums, seen.packing.width, _PARTS,
    )  # fmt: skip
    return grad_rows, grad_query, sums.sum(0)


def mix_forward(asked: torch.Tensor, rows: torch.Tensor, packing: Packing, drop: Dropout) -> tuple[torch.Tensor, ...]:
    """For each query, sum its example's rows, (T, D), weighted by dropout(softmax(query . row / sqrt(head width))).

    Returns:
        The weighted sums, (B, H, D) like the queries `asked`; and the sums of the weights, which dropout changes from
        1, fp32, (B, H).
    """
    out, kept = torch.empty_like(asked), asked.new_empty(asked.shape[:2], dtype=torch.float32)
    arguments = _mix_arguments(asked, rows, packing, drop)
    call("attention_forward", out.dtype, ctypes.byref(arguments), out, kept, packing.width)
    return out, kept


def mix_backward(
    asked: torch.Tensor, rows: torch.Tensor, packing: Packing, drop: Dropout, gradient: torch.Tensor,
    grad_kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the gradients of queries and rows."""
    grad_asked, as_keys, as_values = torch.empty_like(asked), torch.empty_like(rows), torch.empty_like(rows)
    for gradient_of_rows in (as_keys, as_values):
        gradient_of_rows[packing.real :].zero_()
    sums = _sums(3 * rows.size(1))  # unused: there are no biases, but the kernel writes here
    arguments = _mix_arguments(asked, rows, packing, drop)
    call(
        "attention_backward", gradient.dtype, ctypes.byref(arguments), gradient, grad_kept, grad_asked, as_keys,
        as_values, sums, packing.width, _PARTS,
    )  # fmt: skip
    return grad_asked, as_keys.add_(as_values)


def _mix_arguments(asked: torch.Tensor, rows: torch.Tensor, packing: Packing, drop: Dropout) -> _Attention:
    """Describe mixing to the kernels as single-head attention whose keys and values are the rows themselves."""
    width = rows.size(1)
    return _Attention(
        asked.data_ptr(), rows.data_ptr(), rows.data_ptr(), width, width, None, None, None, packing.starts.data_ptr(),
        len(packing.first), 1, width, asked.size(1), packing.head_width**-0.5, drop,
    )  # fmt: skip


def _attention_arguments(seen: Seen, drop: Dropout) -> _Attention:
    width = len(seen.bias) // 3
    step = seen.rows.size(1)
    bias = seen.bias.data_ptr()
    return _Attention(
        *_qkv_pointers(seen.rows, seen.query), step if seen.query is None else width, step,
        bias, bias + 4 * width, bias + 8 * width, seen.packing.starts.data_ptr(),
        len(seen.packing.first), seen.packing.heads, seen.packing.head_width, int(seen.query is not None),
        seen.packing.head_width**-0.5, drop,
    )  # fmt: skip


def _qkv_pointers(rows: torch.Tensor, query: torch.Tensor | None) -> tuple[int, int, int]:
    """Return the addresses of the first query, key and value."""
    start = rows.data_ptr()
    if query is not None:
        return query.data_ptr(), start, start + rows.element_size() * rows.size(1) // 2
    part = rows.element_size() * rows.size(1) // 3
    return start, start + part, start + 2 * part


def _sums(*shape: int) -> torch.Tensor:
    return torch.zeros(_PARTS, *shape)


_ARGUMENTS = {
    "tiled_product": (*[c_void_p] * 5, c_int, c_void_p, *[c_int64] * 4, Dropout, c_int),
    "inner_product": (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int),
    "fill_tiles": (c_void_p, *[c_int64] * 4, c_float, c_int64, c_int64, c_void_p, c_int),
    **{
        f"{arithmetic}_{name}": types
        for arithmetic in ("bf16", "fp16")
        for name, types in {
            "product": (*[c_void_p] * 7, c_int, c_void_p, *[c_int64] * 4, Dropout, c_int),
            "inner_product": (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int),
            "fill_panels": (c_void_p, *[c_int64] * 2, c_float, c_int64, c_int64, c_void_p, c_void_p, c_int),
        }.items()
    },
    "dropout": (c_void_p, c_void_p, c_int, c_int64, c_int64, Dropout, c_int),
    "norm_forward": (*[c_void_p] * 8, c_int64, c_int64, c_float, Dropout, c_int),
    "norm_backward": (*[c_void_p] * 7, c_int64, c_int64, Dropout, c_int64, c_int),
    "gelu_forward": (*[c_void_p] * 3, c_int64, c_int64, c_int),
    "gelu_backward": (*[c_void_p] * 5, c_int64, c_int64, c_int64, c_int),
    "attention_forward": (POINTER(_Attention), *[c_void_p] * 2, c_int64, c_int),
    "attention_backward": (POINTER(_Attention), *[c_void_p] * 6, c_int64, c_int64, c_int),
}


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a kernel, with tensors passed as raw pointers.

    Raises:
        ValueError: a tensor is not contiguous or not on the CPU; the kernels cannot check that themselves.
    """
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and not (argument.is_contiguous() and argument.device.type == "cpu"):
            raise ValueError(f"{name}: a tensor of {tuple(argument.shape)} is not contiguous, or not on the CPU")
    function = getattr(kernels(), f"{name}_{_NAMES[dtype]}")
    if function.argtypes is None:
        function.argtypes, function.restype = _ARGUMENTS[name], None
    raw = [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    function(*raw, torch.get_num_threads())
