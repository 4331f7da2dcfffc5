"""masked_adamw_ as a torch library op: its schema, torch.compile, and lr and step as tensors."""

from __future__ import annotations

import pytest
import torch
from cases import pairwise
from ops.ops_cases import BACKENDS, OPTIONS, assert_same_bits, make_case

from cofitune_fast.ops import masked_adamw_
from cofitune_fast.ops._storage import STORAGES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_library_op_keeps_its_schema(storage, backend):
    case = make_case(storage, "row", [(6, 5), (3,)], anchored="one")
    arguments = (*case.lists(), case.remainders, case.scales, case.masks, case.anchors, case.pulls,
                 torch.tensor([0.5, 0.0]), torch.tensor(1e-2, dtype=torch.float64), torch.tensor(2), 0.9, 0.95, 1e-8,
                 0.1, "update", "l1", storage, 7, [0, 30], True, backend)
    torch.library.opcheck(torch.ops.cofitune_fast.masked_adamw_.default, arguments)


class CompileCounter:
    """A backend for torch.compile that counts how often it is asked; every recompilation asks again."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module, inputs):
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)


@pytest.mark.parametrize("storage", STORAGES)
def test_new_values_of_lr_and_step_do_not_compile_anew(storage):
    torch._dynamo.reset()
    compilations, case = CompileCounter(), make_case(storage, "row", [(6, 5), (2, 300)], anchored="one")
    compiled, eager = case.copy(), case.copy()
    options = {**OPTIONS, "clip": torch.tensor([0.5, 0.0])}
    del options["lr"]

    @torch.compile(backend=compilations, fullgraph=True)
    def step_of(tensors, lr, step):
        masked_adamw_(**tensors, lr=lr, step=step, storage=storage, **options)
        return tensors["params"][0] + 1

    tensors = compiled.arguments()
    del tensors["storage"]
    for step, lr in enumerate((1e-2, 3e-2, 1e-3, 0.5), start=1):
        result = step_of(tensors, torch.tensor(lr), torch.tensor(step))
        masked_adamw_(**eager.arguments(), lr=torch.tensor(lr), step=step, **options)
        torch.testing.assert_close(result, eager.params[0] + 1)
    assert_same_bits(compiled, eager)
    assert compilations.count == 1


def test_numbers_work_under_compile_too():
    torch._dynamo.reset()
    case = make_case("fp32", "row", [(6, 5)])
    compiled = case.copy()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step_of(p, g, m, v, mask):
        masked_adamw_([p], [g], [m], [v], [mask], step=3, **OPTIONS)
        return p + 1

    result = step_of(compiled.params[0], compiled.grads[0], compiled.exp_avgs[0], compiled.exp_avg_sqs[0],
                     case.masks[0])
    eager = case.step()
    assert_same_bits(compiled, eager)
    torch.testing.assert_close(result, eager.params[0] + 1)


@pairwise({"shape": [(), (1,)], "dtype": [torch.float32, torch.float64], "backend": BACKENDS})
def test_tensors_and_numbers_give_the_same_bits(shape, dtype, backend):
    case = make_case("bf16")
    lr = 0.015625  # exact in both types
    for step in (1, 1000, 2**40):
        numbers = case.step(lr=lr, step=step, backend=backend)
        tensors = case.step(lr=torch.full(shape, lr, dtype=dtype), step=torch.full(shape, step), backend=backend)
        assert_same_bits(numbers, tensors)
