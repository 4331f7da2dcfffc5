"""Checks of the arguments of an op. Each failure is one sentence: which op, which argument, what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

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


class Layout(IntEnum):
    """How factors broadcast over a parameter that is seen as a matrix [rows, columns].

    Columns are the parameter's last dimension. csrc/include/cofitune/adamw_tensor.h has the same numbers.
    """

    NONE = 0
    ONE = 1
    ROW = 2
    COLUMN = 3
    ELEMENT = 4


def layout(op: str, name: str, factors: torch.Tensor | None, shape: Sequence[int]) -> Layout:
    """Layout of `factors` (a mask or a pull) over a parameter of `shape`.

    Raises:
        CofituneError: they do not broadcast as [out, 1], [1, in], one number or one number per element.
    """
    if factors is None:
        return Layout.NONE
    columns = shape[-1] if len(shape) else 1
    padded = (1,) * (max(len(shape), 1) - factors.dim()) + tuple(factors.shape)
    lead, last = padded[:-1], padded[-1]
    per_row, per_column = lead == tuple(shape[:-1]), last == columns
    require(
        len(padded) == max(len(shape), 1)
        and (per_row or all(size == 1 for size in lead))
        and (per_column or last == 1),
        f"{op}: {name} of shape {list(factors.shape)} does not fit its parameter of shape {list(shape)}: there must be "
        "one factor per row ([out, 1]), per column ([1, in]) or per element.",
    )
    per_row = per_row and any(size != 1 for size in lead)
    per_column = per_column and last != 1
    if per_row:
        return Layout.ELEMENT if per_column else Layout.ROW
    return Layout.COLUMN if per_column else Layout.ONE


def no_aliasing(op: str, written: Sequence[tuple[str, torch.Tensor]], read: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Refuse two tensors that share memory, unless both are only read."""
    spans = sorted(
        (start, start + tensor.nbytes, is_written, name)
        for is_written, tensors in ((True, written), (False, read))
        for name, tensor in tensors
        if tensor.nbytes and (start := tensor.data_ptr())
    )
    end, holder = 0, ""  # end and name of the span that reaches farthest so far
    written_end, written_holder = 0, ""  # the same among the spans that are written
    for start, stop, is_written, name in spans:
        if start < written_end:
            other = written_holder
        elif is_written and start < end:
            other = holder
        else:
            other = None
        require(other is None, f"{op}: {name} and {other} share memory; give each a tensor of its own.")
        if stop > end:
            end, holder = stop, name
        if is_written and stop > written_end:
            written_end, written_holder = stop, name
