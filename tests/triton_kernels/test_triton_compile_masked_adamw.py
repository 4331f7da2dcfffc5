"""kernels/masked_adamw.py compiled for GPUs that are not there: 16-byte accesses, no spills, no FP64, no shortcuts."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytest.importorskip("triton")

from compile_harness import ARCHITECTURES, compiled, request

from cofitune_fast.ops import triton
from cofitune_fast.ops._checks import Layout
from cofitune_fast.ops._storage import STORAGES

pytestmark = pytest.mark.slow  # kernels are compiled

TILE, WARPS, BLOCK = (getattr(triton.kernel("masked_adamw"), name) for name in ("TILE", "WARPS", "BLOCK"))
POINTERS = {"float32": "*fp32:16", "bfloat16": "*i16:16", "uint8": "*u8:16"}

# 16-byte accesses of a thread for its 8 elements: p, g, m and v (and the remainder) are read, and all of them written,
# as g is set to zero.
WIDE = {"fp32": 8, "bf16_split": 7, "bf16_sr": 6, "bf16": 4, "int8": 2}
CODES = {"int8": 2}  # 8 codes of each moment are 8 bytes
REGISTERS = 160  # of 65536, so that three blocks of four warps run together


def step(storage: str, mask: str, layout: Layout, anchor: bool = False, pull: int = 1, **options) -> int:
    form = STORAGES[storage]
    weight, moment = (POINTERS[str(dtype).removeprefix("torch.")] for dtype in (form.weight, form.moment))
    width = BLOCK if form.scaled else TILE
    return request("masked_adamw", "masked_adamw_kernel", {
        "p": weight, "g": weight, "m": moment, "v": moment, "remainder": "*i16:16" if form.remainder else None,
        "scales": "*fp32:16" if form.scaled else None, "mask": mask, "anchor": weight if anchor else None,
        "pull": "*fp32:16" if anchor else None, "clip": "*fp32:16", "coefficients": "*fp32:16", "step": "*i64:16",
        "seed": "u64", "offset": "u64", "rows": "i64", "pieces_per_row": "i64", "columns": "i64:16",
        "STORAGE": form.code, "MASK_LAYOUT": int(layout), "PULL_LAYOUT": int(Layout.ROW if anchor else Layout.NONE),
        "PULL": pull, "GRADIENT_MODE": False, "ZERO_GRAD": True, "PIECES": TILE // width, "WIDTH": width,
    }, num_warps=WARPS, **{"enable_fp_fusion": False, **options})


BY_ROW = {storage: step(storage, "*fp32:16", Layout.ROW) for storage in STORAGES}
BY_ELEMENT = {storage: step(storage, "*u8:16", Layout.ELEMENT, anchor=True) for storage in STORAGES}
BY_L1 = {storage: step(storage, "*fp32:16", Layout.ROW, anchor=True, pull=2) for storage in STORAGES}
FUSED = step("fp32", "*fp32:16", Layout.ROW, enable_fp_fusion=True)
CRAMPED = step("fp32", "*fp32:16", Layout.ROW, maxnreg=24)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("storage", STORAGES)
def test_tensors_are_read_and_written_16_bytes_at_a_time(storage, arch):
    result = compiled(BY_ROW[storage], arch)
    loads, stores = result.accesses("LDG"), result.accesses("STG")
    assert (loads[128], stores[128]) == (WIDE[storage], WIDE[storage])
    assert stores[64] == CODES.get(storage, 0) and loads[64] <= CODES.get(storage, 0) + 1  # and the step
    assert not loads[16] + loads[8] + stores[16] + stores[8]
    with_anchor = compiled(BY_ELEMENT[storage], arch).accesses("LDG")
    assert with_anchor[128] == WIDE[storage] + (2 if storage == "fp32" else 1) and not with_anchor[16] + with_anchor[8]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("number", [*BY_ROW.values(), *BY_ELEMENT.values(), *BY_L1.values()])
def test_no_spills_and_no_float64(number, arch):
    result = compiled(number, arch)
    assert not result.local_bytes and result.registers <= REGISTERS
    assert not result.uses_f64


@pytest.mark.skipif(tuple(map(int, version("triton").split(".")[:2])) < (3, 6), reason="it then flushes denormals")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("number", [*BY_ROW.values(), *BY_ELEMENT.values(), *BY_L1.values()])
def test_every_rounding_is_as_on_the_cpu(number, arch):
    assert not compiled(number, arch).uses_approximation


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_harness_sees_spills_and_contraction(arch):
    assert compiled(CRAMPED, arch).local_bytes and compiled(CRAMPED, arch).registers == 24
    assert compiled(FUSED, arch).uses_approximation
