"""Checks of what is passed to an op. Each failure is one sentence: which op, which argument, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import CofituneError

Tensors = Sequence[torch.Tensor]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise CofituneError(message)


def same_length(op: str, **lists: Sequence[object]) -> None:
    lengths = [len(values) for values in lists.values()]
    require(
        len(set(lengths)) <= 1,
        f"{op}: {', '.join(lists)} must be lists of one length, but their lengths are "
        f"{', '.join(map(str, lengths))}.",
    )


def one_device(op: str, **lists: Sequence[torch.Tensor | None]) -> torch.device:
    """The device that all tensors share; the CPU for empty lists."""
    first: tuple[str, torch.device] | None = None
    for name, tensors in lists.items():
        for index, tensor in enumerate(tensors):
            if tensor is None:
                continue
            if first is None:
                first = (f"{name}[{index}]", tensor.device)
            require(
                tensor.device == first[1],
                f"{op}: all tensors must be on one device, but {first[0]} is on {first[1]} and {name}[{index}] is on "
                f"{tensor.device}.",
            )
    return first[1] if first else torch.device("cpu")


def dtype_is(op: str, name: str, tensor: torch.Tensor, *allowed: torch.dtype) -> None:
    require(
        tensor.dtype in allowed,
        f"{op}: {name} must be {' or '.join(map(plain, allowed))}, but it is {plain(tensor.dtype)}.",
    )


def shape_is(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    require(
        tuple(tensor.shape) == tuple(shape),
        f"{op}: {name} must have shape {list(shape)}, but its shape is {list(tensor.shape)}.",
    )


def contiguous(op: str, name: str, tensor: torch.Tensor) -> None:
    require(tensor.is_contiguous(), f"{op}: {name} must be contiguous; pass {name}.contiguous().")


def plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def mask_strides(op: str, name: str, mask: torch.Tensor, shape: Sequence[int]) -> tuple[int, int]:
    """How a mask lies over a parameter seen as a matrix [rows, columns], columns being the last dimension.

    Returns:
        The mask's (row stride, column stride) in elements: (1, 0) one factor per row, (0, 1) one per column,
        (columns, 1) one per element, (0, 0) one for the whole parameter.

    Raises:
        CofituneError: the mask is none of these.
    """
    columns = shape[-1] if len(shape) else 1
    padded = (1,) * (max(len(shape), 1) - mask.dim()) + tuple(mask.shape)
    lead, last = padded[:-1], padded[-1]
    per_row, per_column = lead == tuple(shape[:-1]), last == columns
    require(
        len(padded) == max(len(shape), 1)
        and (per_row or all(size == 1 for size in lead))
        and (per_column or last == 1),
        f"{op}: {name} of shape {list(mask.shape)} does not fit its parameter of shape {list(shape)}: a mask has one "
        "factor per row ([out, 1]), per column ([1, in]) or per element.",
    )
    per_row = per_row and any(size != 1 for size in lead)
    per_column = per_column and last != 1
    return (last if per_row else 0), int(per_column)
