"""Softmax of rows of logits in two steps, in place. Between the steps a caller can read single logits.

    log_sum_exp:      s = log sum_j e^z_j, so that log q_j = z_j - s
    scaled_softmax_:  z_j <- scale q_j = scale e^(z_j - s)

A next-token loss needs only a few log-probabilities. Its gradient by the logits is a multiple of q except at a few
tokens. So neither needs a float32 copy of all logits.
"""

from __future__ import annotations

import torch

from . import native, triton
from ._checks import contiguous, dtype_is, one_device, plain, require, shape_is
from ._registry import operation

_REFERENCE_ELEMENTS = 1 << 20  # logits that the references convert to float32 at a time

_WITH_KERNELS, _WITHOUT = (torch.float32, torch.bfloat16), (torch.float64, torch.float16)


def _log_sum_exp_reference(logits: torch.Tensor) -> torch.Tensor:
    result = logits.new_empty(len(logits), dtype=_at_least_float32(logits))
    for rows in _blocks(logits):
        result[rows] = logits[rows].to(result.dtype).logsumexp(-1)
    return result


def _scaled_softmax_reference(logits: torch.Tensor, log_sums: torch.Tensor, scales: torch.Tensor) -> None:
    for rows in _blocks(logits):
        logits[rows] = (logits[rows].to(log_sums.dtype) - log_sums[rows, None]).exp_().mul_(scales[rows, None])


def _blocks(logits: torch.Tensor) -> list[slice]:
    step = max(1, _REFERENCE_ELEMENTS // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _at_least_float32(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _log_sum_exp_native(logits: torch.Tensor) -> torch.Tensor:
    result = torch.empty(len(logits))
    native.library().log_sum_exp(logits.data_ptr(), result.data_ptr(), *logits.shape, logits.dtype == torch.bfloat16,
                                 torch.get_num_threads())
    return result


def _scaled_softmax_native(logits: torch.Tensor, log_sums: torch.Tensor, scales: torch.Tensor) -> None:
    native.library().scaled_softmax(logits.data_ptr(), log_sums.data_ptr(), scales.data_ptr(), *logits.shape,
                                    logits.dtype == torch.bfloat16, torch.get_num_threads())


def _log_sum_exp_triton(logits: torch.Tensor) -> torch.Tensor:
    return triton.kernel("softmax").log_sum_exp(logits)


def _scaled_softmax_triton(logits: torch.Tensor, log_sums: torch.Tensor, scales: torch.Tensor) -> None:
    triton.kernel("softmax").scaled_softmax(logits, log_sums, scales)


_SUM = operation("log_sum_exp", _log_sum_exp_reference)
_SOFTMAX = operation("scaled_softmax_", _scaled_softmax_reference)
for _op, _cpu, _gpu in ((_SUM, _log_sum_exp_native, _log_sum_exp_triton),
                        (_SOFTMAX, _scaled_softmax_native, _scaled_softmax_triton)):
    _op.add("cpu", _cpu, ("cpu",), native.load_error)
    _op.lack("cuda", "this op has no CUDA C++ kernel; on GPUs it is Triton's")
    _op.add("triton", _gpu, triton.devices(), triton.load_error)


@torch.library.custom_op("cofitune_fast::log_sum_exp", mutates_args=(), schema="(Tensor logits, str backend) -> Tensor")
def _log_sum_exp(logits, backend):
    return _SUM.run(backend, logits.device, logits)


@_log_sum_exp.register_fake
def _(logits, backend):
    return logits.new_empty(len(logits), dtype=_at_least_float32(logits))


@torch.library.custom_op(
    "cofitune_fast::scaled_softmax_", mutates_args=("logits",),
    schema="(Tensor(a!) logits, Tensor log_sums, Tensor scales, str backend) -> ()",
)
def _scaled_softmax_(logits, log_sums, scales, backend):
    _SOFTMAX.run(backend, logits.device, logits, log_sums, scales)


@_scaled_softmax_.register_fake
def _(logits, log_sums, scales, backend):
    return None


def log_sum_exp(logits: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """Compute log sum_j e^z_j of each row: float32 [n], or float64 for float64 logits.

    The result is NaN where a logit is, else inf where a logit is, and -inf where all are. It is not differentiable.
    The logits are read once, and only the result is allocated.

    Args:
        logits: [n, V], contiguous, of a floating dtype; V at least 1.
        backend: "auto", "reference", "cpu", "triton" or "cuda". float64 and float16 have the reference only.

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    return _log_sum_exp(logits, _check(_SUM.name, logits, backend))


def scaled_softmax_(
    logits: torch.Tensor, log_sums: torch.Tensor, scales: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Overwrite each row of logits with scale * e^(z - log_sum), and return the logits.

    With the row's `log_sum_exp` this is its softmax times `scale`. It is computed in float32 (float64 for float64
    logits), and rounded once to the logits' dtype.

    Args:
        logits: [n, V], contiguous, of a floating dtype; V at least 1.
        log_sums: [n], the result of `log_sum_exp`.
        scales: [n], of the dtype of log_sums.
        backend: see `log_sum_exp`.

    Raises:
        CofituneError: an argument does not fit, or the backend asked for cannot run.
    """
    backend = _check(_SOFTMAX.name, logits, backend)
    for name, tensor in (("log_sums", log_sums), ("scales", scales)):
        dtype_is(_SOFTMAX.name, name, tensor, _at_least_float32(logits))
        shape_is(_SOFTMAX.name, name, tensor, logits.shape[:1])
        contiguous(_SOFTMAX.name, name, tensor)
    one_device(_SOFTMAX.name, logits=[logits], log_sums=[log_sums], scales=[scales])
    _scaled_softmax_(logits, log_sums, scales, backend)
    return logits


def _check(op: str, logits: torch.Tensor, backend: str) -> str:
    """Check the logits, and return the backend to use for their dtype."""
    require(logits.dim() == 2, f"{op}: logits must have two dimensions, but their shape is {list(logits.shape)}.")
    require(logits.shape[1] > 0, f"{op}: logits have no columns; the vocabulary must have at least one token.")
    dtype_is(op, "logits", logits, *_WITH_KERNELS, *_WITHOUT)
    contiguous(op, "logits", logits)
    if logits.dtype in _WITH_KERNELS:
        return backend
    require(backend in ("auto", "reference"), f"{op}: {plain(logits.dtype)} has the reference only; use backend='auto' "
            f"or 'reference', not {backend!r}.")
    return "reference"
