"""The reductions compiled, as they are launched, for GPUs that are not there: 16-byte accesses, no spills, no FP64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from compile_harness import ARCHITECTURES, compiled, request

from cofitune_fast.ops import triton

pytestmark = pytest.mark.slow  # kernels are compiled

pytest.importorskip("triton")

grad_norm, unit_importance, linear_kl, softmax = map(
    triton.kernel, ("grad_norm", "unit_importance", "linear_kl", "softmax")
)
ELEMENTS = ("fp32", "bf16")
STORED = {"fp32": "*fp32:16", "bf16": "*i16:16"}  # of logits


def squares(element):
    return request("grad_norm", "squares_kernel", {
        "sums": "*fp32:16", "grad": f"*{element}:16", "first": "i32", "size": "i64",
        "PIECE": grad_norm.PIECE, "BLOCK": grad_norm.BLOCK,
    })


def row_block(*elements):
    return grad_norm.row_block(*({"fp32": torch.float32, "bf16": torch.bfloat16}[element] for element in elements))


def dots(weight, grad):
    return request("grad_norm", "rows_kernel", {
        "sums": "*fp32:16", "dots": "*fp32:16", "weight": f"*{weight}:16", "grad": f"*{grad}:16", "first": "i32",
        "columns": "i32:16", "BLOCK": row_block(weight, grad),
    })


def columns(element, mask):
    sizes = {name: getattr(unit_importance, name) for name in ("SPLIT", "TOKENS", "COLUMNS")}
    return request("unit_importance", "columns_kernel", {
        "sums": "*fp32:16", "y": f"*{element}:16", "grad_y": f"*{element}:16", "attention_mask": mask, "tokens": "i32",
        "width": "i32:16", **sizes,
    })


def units(unit_size, at_once, terms):
    return request("unit_importance", "units_kernel", {
        "scores": "*fp32:16", "sums": "*fp32:16", "samples": "i32", "splits": "i32", "units": "i32",
        "unit_size": unit_size, "UNITS": at_once, "TERMS": terms,
    })


def divergence(softcap, gradients):
    return request("linear_kl", "rows_kernel", {
        "kl": "*fp32:16", "logits_p": "*fp32:16", "logits_q": "*fp32:16", "softcap": softcap, "vocabulary": "i32:16",
        "GRADIENTS": gradients, "BLOCK": linear_kl.BLOCK,
    }, num_warps=linear_kl.WARPS)


def log_sum(element):
    return request("softmax", "log_sum_kernel", {
        "log_sums": "*fp32:16", "logits": STORED[element], "vocabulary": "i32:16", "BLOCK": softmax.BLOCK,
    }, num_warps=softmax.WARPS)


def scaled_softmax(element):
    return request("softmax", "scaled_softmax_kernel", {
        "logits": STORED[element], "log_sums": "*fp32:16", "scales": "*fp32:16", "vocabulary": "i32:16",
        "BLOCK": softmax.BLOCK,
    }, num_warps=softmax.WARPS)


SQUARES = {element: squares(element) for element in ELEMENTS}
DOTS = {pair: dots(*pair) for pair in (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"))}
IMPORTANCE = {pair: columns(*pair) for pair in product(ELEMENTS, (None, "*u8:16"))}
UNITS = {
    "neuron": units(1, *unit_importance.NEURONS),
    "head of 128": units("i32:16", *unit_importance.HEADS),
    "head of 100": units("i32", *unit_importance.HEADS),
}
DIVERGENCE = {pair: divergence(*pair) for pair in ((None, False), (None, True), ("fp32", True))}
LOG_SUM = {element: log_sum(element) for element in ELEMENTS}
SOFTMAX = {element: scaled_softmax(element) for element in ELEMENTS}

cases = pytest.mark.parametrize("arch", ARCHITECTURES)


def lean(result, registers):
    """No spills and no float64; few enough registers for the stated number of threads on a multiprocessor."""
    assert result.local_bytes == 0
    assert not result.uses_f64
    assert result.registers <= registers


@cases
@pytest.mark.parametrize("element", ELEMENTS)
def test_squares_of_whole_blocks_are_read_16_bytes_at_a_time(element, arch):
    result = compiled(SQUARES[element], arch)
    lean(result, registers=80)  # 768 threads
    loads = 4096 // 128 // (4 if element == "fp32" else 8)
    assert result.accesses("LDG") == {128: loads, 32 if element == "fp32" else 16: 32}  # the latter: the last block


@cases
@pytest.mark.parametrize("pair", DOTS)
def test_rows_are_read_16_bytes_at_a_time_and_once(pair, arch):
    result = compiled(DOTS[pair], arch)
    lean(result, registers=80)
    assert result.loads_128 == sum(row_block(*pair) // 128 // (4 if element == "fp32" else 8) for element in pair)
    assert sum(result.accesses("LDG").values()) == result.loads_128


@cases
@pytest.mark.parametrize("element, mask", IMPORTANCE)
def test_outputs_and_their_gradients_are_read_16_bytes_at_a_time(element, mask, arch):
    result = compiled(IMPORTANCE[element, mask], arch)
    lean(result, registers=80)
    loads = result.accesses("LDG")
    assert loads[128] == 2 * 16 * 256 // 128 // (4 if element == "fp32" else 8)
    assert set(loads) == ({128} if mask is None else {128, 8})


@cases
@pytest.mark.parametrize("unit", UNITS)
def test_the_finish_of_unit_importance_is_small(unit, arch):
    lean(compiled(UNITS[unit], arch), registers=64)


@cases
@pytest.mark.parametrize("softcap, gradients", DIVERGENCE)
def test_logits_are_read_and_overwritten_16_bytes_at_a_time(softcap, gradients, arch):
    result = compiled(DIVERGENCE[softcap, gradients], arch)
    lean(result, registers=168)  # 256 threads a program
    per_pass = 2 * 4096 // 256 // 4
    assert result.accesses("LDG") == {128: 2 * per_pass if gradients else per_pass}
    assert result.accesses("STG") == {128: per_pass, 32: 1} if gradients else {32: 1}


@cases
@pytest.mark.parametrize("element", ELEMENTS)
def test_a_softmax_reads_and_writes_16_bytes_at_a_time(element, arch):
    per_pass = 4096 // 256 // (4 if element == "fp32" else 8)
    result = compiled(LOG_SUM[element], arch)
    lean(result, registers=168)
    assert result.accesses("LDG") == {128: per_pass}
    assert result.accesses("STG") == {32: 1}
    result = compiled(SOFTMAX[element], arch)
    lean(result, registers=168)
    assert result.accesses("LDG") == {128: per_pass, 32: 2}
    assert result.accesses("STG") == {128: per_pass}
