"""That `make sanitize` sees faults: each is committed in a process of its own, which must die of it and say why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from ops.ops_cases import ISAS, OPTIONS, Case, instruction_set, make_case

from cofitune_fast.ops import _adamw_call, grad_norm, masked_adamw_, native, unit_importance_
from cofitune_fast.ops._storage import STORAGES

if "COFITUNE_SANITIZER" not in os.environ:
    pytest.skip("make sanitize runs these", allow_module_level=True)

address = pytest.mark.skipif(os.environ["COFITUNE_SANITIZER"] != "address", reason="a fault for another sanitizer")
thread = pytest.mark.skipif(os.environ["COFITUNE_SANITIZER"] != "thread", reason="a fault for another sanitizer")

ARGUMENTS = [
    (storage, name)
    for storage, form in STORAGES.items()
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "masks", "anchors", "pulls",
                 *["remainders"] * form.remainder, *["scales"] * form.scaled)
]

# In a Python of its own, as this sanitizer does not bear threads after a fork.
RACE = """
import importlib, instrumented, torch
from cofitune_fast.ops import masked_adamw_
importlib.import_module("cofitune_fast.ops._adamw_call").no_aliasing = lambda *_: None
torch.set_num_threads(4)
masked_adamw_(*([torch.ones(1 << 20)] * 2 for _ in range(4)), lr=0.1, step=1, backend="cpu")
"""


def report(work) -> str:
    """What a process that does `work` writes before it dies; fails if it lives."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        try:
            work()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0, f"the fault went unnoticed: {text}"
    return text


def cut_short(tensor: torch.Tensor) -> torch.Tensor:
    """Takes the memory of its last element from a tensor that goes on saying it is there."""
    tensor.untyped_storage().resize_(tensor.nbytes - tensor.itemsize)
    return tensor


def step(case: Case, **options) -> None:
    masked_adamw_(**case.arguments(), **OPTIONS, step=1, backend="cpu", **options)


def test_the_watched_build_is_the_one_in_use():
    import instrumented

    assert native.library() is instrumented.native


@address
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("storage", "name"), ARGUMENTS)
def test_one_element_beyond_a_tensor_of_the_step(storage, name, isa, monkeypatch):
    monkeypatch.setattr(_adamw_call, "_check_range", lambda *_: None)  # lest it meet the missing element's first
    case = make_case(storage, "element", [(17,)], anchored="element")
    with instruction_set(isa):
        step(case)  # is in order while the memory is
        cut_short(getattr(case, name)[0])
        assert "heap-buffer-overflow" in report(lambda: step(case))


@address
def test_a_write_beyond_a_tensor():
    case = make_case(shapes=[(17,)])
    cut_short(case.grads[0])
    text = report(lambda: step(case, clip=torch.tensor([0.0, 1.0]), zero_grad=True))
    assert "heap-buffer-overflow" in text and "WRITE of size" in text


@address
def test_a_read_beyond_what_is_reduced():
    assert "heap-buffer-overflow" in report(lambda: grad_norm([cut_short(torch.ones(4097))], backend="cpu"))
    y = [torch.ones(1, 3, 5) for _ in range(2)]
    assert "heap-buffer-overflow" in report(lambda: unit_importance_(torch.zeros(5), y[0], cut_short(y[1]),
                                                                     backend="cpu"))


@address
def test_undefined_arithmetic():
    assert "division by zero" in report(lambda: native.library().chunk(0, 1, 0, 256))


@thread
def test_two_threads_on_one_element():
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True)
    assert done.returncode != 0 and "data race" in done.stderr, done.stderr
