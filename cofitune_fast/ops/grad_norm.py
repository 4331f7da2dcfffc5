"""grad_norm: the global L2 norm of a list of gradients, the clip factor and the skip flag, without a host sync.

The same pass can also sum the products of weights and gradients over each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import cuda, native, triton
from ._checks import Tensors, contiguous, dtype_is, one_device, require, same_length, shape_is
from ._registry import operation

_NAME = "grad_norm"
_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST = torch.finfo(torch.float32).max
_Results = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]  # norm, clip, row dots


class GradNorm(NamedTuple):
    """Result of `grad_norm`, on the gradients' device.

    norm: float32, 0-d.
    clip: float32 [2]. clip[0] is the factor min(1, max_norm / (norm + 1e-6)). clip[1] is the skip flag: 1.0 if the norm
        is not finite, and then the factor is 0; else 0.0.
    row_dots: for each weight [rows, columns] the sums of weight times gradient over the columns, float32 [rows]; None
        without weights.
    """

    norm: torch.Tensor
    clip: torch.Tensor
    row_dots: list[torch.Tensor] | None = None


def reference(grads: Tensors, weights: Tensors, max_norm: float) -> _Results:
    """Eager reference. Sums in float64, as float32 squares overflow from 1.8e19 on. max_norm: infinity for no clip."""
    squares = [g.double().square().sum() for g in grads]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
    dots = [(w.double() * g.double()).sum(-1).float() for w, g in zip(weights, grads[:len(weights)], strict=True)]
    return *finish(total, max_norm), dots


def finish(total: torch.Tensor, max_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and clip from the float64 sum of squares; shared with the backends that only sum."""
    norm = total.sqrt().float()
    finite = norm.isfinite()
    factor = (torch.full_like(norm, max_norm) / (norm + 1e-6)).clamp(max=1.0)
    return norm, torch.stack([torch.where(finite, factor, 0.0), (~finite).float()])


def _row_shape(weight: torch.Tensor) -> torch.Size:
    """Shape with one number per row; a row runs along the last dimension."""
    return weight.shape[:-1]


def _table(grads: Tensors, weights: Tensors, dots: Tensors) -> tuple[list, ...]:
    """The tensors as lists of numbers for the native kernels.

    Addresses of gradients, of weights and of row dots; then rows and columns, two numbers per tensor; then True for
    each bfloat16 gradient.
    """
    if weights:
        shapes = [size for w, dot in zip(weights, dots, strict=True) for size in (dot.numel(), math.prod(w.shape[-1:]))]
    else:
        shapes = [size for g in grads for size in (1, g.numel())]
    addresses = ([tensor.data_ptr() for tensor in tensors] for tensors in (grads, weights, dots))
    return *addresses, shapes, [g.dtype == torch.bfloat16 for g in grads]


def _outputs(weights: Tensors, device: torch.device) -> _Results:
    """Empty outputs. Row dots start at zero, as the kernels do not write those of rows without columns."""
    return (torch.empty((), device=device), torch.empty(2, device=device),
            [torch.zeros(_row_shape(w), device=device) for w in weights])


def _native(grads: Tensors, weights: Tensors, max_norm: float) -> _Results:
    norm, clip, dots = _outputs(weights, torch.device("cpu"))
    native.library().grad_norm(*_table(grads, weights, dots), max_norm, norm.data_ptr(), clip.data_ptr(),
                               torch.get_num_threads())
    return norm, clip, dots


def _cuda(grads: Tensors, weights: Tensors, max_norm: float) -> _Results:
    device = grads[0].device
    norm, clip, dots = _outputs(weights, device)
    table = _table(grads, weights, dots)
    partials = torch.empty(cuda.library().grad_norm_partials(*table), dtype=torch.float64, device=device)
    cuda.library().grad_norm(*table, partials.data_ptr(), max_norm, norm.data_ptr(), clip.data_ptr(),
                             *cuda.place(device))
    return norm, clip, dots


def _triton(grads: Tensors, weights: Tensors, max_norm: float) -> _Results:
    kernels = triton.kernel("grad_norm")
    if weights:
        total, dots = kernels.sum_of_squares_and_row_dots(weights, grads)
    else:
        total, dots = kernels.sum_of_squares(grads), []
    return *finish(total, max_norm), dots


op = operation(_NAME, reference)
op.add("cpu", _native, ("cpu",), native.load_error)
op.add("cuda", _cuda, ("cuda",), cuda.load_error)
op.add("triton", _triton, triton.devices(), triton.load_error)

# The lower layer of torch.library costs 5 microseconds a call, torch.library.custom_op 13; there is no autograd here.
torch.library.define(
    "cofitune_fast::grad_norm",
    "(Tensor[] grads, Tensor[] weights, float max_norm, str backend) -> (Tensor, Tensor, Tensor[])",
)
_library_op = torch.ops.cofitune_fast.grad_norm.default


@torch.library.impl("cofitune_fast::grad_norm", "default")
def _grad_norm(grads: Tensors, weights: Tensors, max_norm: float, backend: str) -> _Results:
    # The dispatcher hands a ZeroTensor on as one element that is read many times, which no kernel takes.
    grads, weights = ([x.contiguous() for x in given] for given in (grads, weights))
    return op.run(backend, grads[0].device if grads else torch.device("cpu"), grads, weights, max_norm)


@torch.library.register_fake("cofitune_fast::grad_norm")
def _(grads: Tensors, weights: Tensors, max_norm: float, backend: str) -> _Results:
    device = grads[0].device if grads else torch.device("cpu")
    return (torch.empty((), device=device), torch.empty(2, device=device),
            [torch.empty(_row_shape(w), device=device) for w in weights])


@torch.no_grad()
def grad_norm(
    grads: Tensors, max_norm: float | None = None, *, weights: Sequence[torch.Tensor] | None = None,
    backend: str = "auto",
) -> GradNorm:
    """Compute the L2 norm over all elements of all gradients, and the clip that `masked_adamw_` takes.

    With `weights`, also sum weight times gradient over each row. For the weight W of y = W x this is the gradient of a
    gate of ones on the row's neuron, summed over all samples that made the gradient. A bias adds the product of the
    bias and its gradient.

    The result depends on the gradients alone and not on the number of threads. On CPUs eight products are summed in
    float32, and these sums in float64. The relative error of the norm is below 2e-7; the error of a row dot is below
    3e-7 of the sum of the magnitudes of its terms.

    Args:
        grads: contiguous float32 or bfloat16 tensors of any shapes on one device; may be empty (norm 0).
        max_norm: norm above which the gradients are scaled down as by torch.nn.utils.clip_grad_norm_; None: never.
        weights: for each gradient its weight, of the same shape and dtype, contiguous; None: no row dots.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        GradNorm(norm, clip, row_dots); row_dots[i] has the shape of weights[i] without its last dimension.

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    _check(grads, weights)
    require(max_norm is None or max_norm > 0, f"{_NAME}: max_norm must be positive or None, not {max_norm}.")
    limit = math.inf if max_norm is None or max_norm > _LARGEST else float(max_norm)
    norm, clip, dots = _library_op(list(grads), [] if weights is None else list(weights), limit, backend)
    return GradNorm(norm, clip, None if weights is None else dots)


def _check(grads: Tensors, weights: Tensors | None) -> None:
    tensors = [*grads, *(weights or ())]
    device = tensors[0].device if tensors else None
    # Error messages are built only when needed: with 300 tensors building them takes longer than the norm.
    if all(t.dtype in _DTYPES and t.is_contiguous() and t.device == device for t in tensors) and weights is None:
        return
    named = {"grads": grads} if weights is None else {"grads": grads, "weights": weights}
    same_length(_NAME, **named)
    one_device(_NAME, **named)
    for name, members in named.items():
        for index, tensor in enumerate(members):
            dtype_is(_NAME, f"{name}[{index}]", tensor, *((grads[index].dtype,) if name == "weights" else _DTYPES))
            contiguous(_NAME, f"{name}[{index}]", tensor)
            shape_is(_NAME, f"{name}[{index}]", tensor, grads[index].shape)
