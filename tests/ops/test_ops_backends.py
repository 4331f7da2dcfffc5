"""Which backend runs: automatic choice falls back, a forced one raises its reason, and both say why."""

from __future__ import annotations

import importlib
import types

import pytest
import torch
from ops.ops_cases import needs_native

from cofitune_fast import ops
from cofitune_fast.errors import CofituneError
from cofitune_fast.ops import native
from cofitune_fast.ops._registry import OPERATIONS, Operation

CPU = torch.device("cpu")


@pytest.fixture
def fresh_load():
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def test_the_table_names_every_op_and_backend():
    table = ops.backends()
    assert sorted(table) == [
        "grad_norm", "linear_kl", "log_sum_exp", "masked_adamw_", "scaled_softmax_", "unit_importance_",
    ]
    for rows in table.values():
        assert sorted(rows) == ["auto", "cpu", "cuda", "reference", "triton"]
        assert rows["reference"] == "available" and rows[rows["auto"]] == "available"
        assert all(rows.values())  # "available" or the reason why not


@needs_native
def test_cpu_tensors_take_the_native_kernels():
    for name in OPERATIONS:
        assert OPERATIONS[name].choose("auto", CPU) == "cpu"
    assert OPERATIONS["masked_adamw_"].choose("auto", torch.device("meta")) == "reference"
    with pytest.raises(CofituneError, match="it serves cpu tensors and these are on meta"):
        OPERATIONS["masked_adamw_"].choose("cpu", torch.device("meta"))


def test_a_build_that_is_missing_is_explained_and_replaced(fresh_load, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert "not built" in native.load_error() and native.isa() is None
    assert ops.backends()["grad_norm"]["auto"] == "reference"
    assert ops.grad_norm([torch.full((4,), 2.0)]).norm.item() == 4
    with pytest.raises(CofituneError, match=r"the backend 'cpu' cannot run \(the native extension is not"):
        ops.grad_norm([torch.ones(2)], backend="cpu")


def test_a_build_that_does_not_load_is_explained(fresh_load, monkeypatch):
    def break_down(name):
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(importlib, "import_module", break_down)
    assert "does not load (undefined symbol: x)" in native.load_error()
    with pytest.raises(RuntimeError, match="undefined symbol"):
        native.library()


def test_a_build_of_other_sources_is_refused(fresh_load, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: types.SimpleNamespace(INTERFACE=0))
    assert "built from other sources (interface 0" in native.load_error()


@needs_native
def test_an_instruction_set_this_cpu_lacks_is_refused():
    assert native.isa() in ("baseline", "avx2", "avx512")
    with pytest.raises(ValueError, match="does not have the instruction set neon"):
        native.library().use_isa("neon")


def test_the_first_usable_backend_wins():
    op = Operation("toy", lambda x: ("reference", x))
    op.add("cuda", lambda x: ("cuda", x), ("cpu",), lambda: "no device")
    op.add("triton", lambda x: ("triton", x), ("cpu",), lambda: None)
    op.add("cpu", lambda x: ("cpu", x), ("cpu",), lambda: None)
    assert op.run("auto", CPU, 1) == ("triton", 1)
    assert op.run("reference", CPU, 2) == ("reference", 2)
    assert op.run("cpu", CPU, 3) == ("cpu", 3)
    assert op.table() == {"reference": "available", "cuda": "no device", "triton": "available", "cpu": "available",
                          "auto": "triton"}
