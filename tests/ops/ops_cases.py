"""What the ops are tested on, and how exactly: backends, tolerances and tensors, as data."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
import torch

from cofitune_fast.ops import masked_adamw_, native, triton
from cofitune_fast.ops._storage import STORAGES, scale_shape

needs_native = pytest.mark.skipif(native.load_error() is not None, reason=str(native.load_error()))
BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]
interpreted = pytest.mark.skipif(triton.load_error() is not None or "cpu" not in triton.devices(),
                                 reason=triton.load_error() or "TRITON_INTERPRET=1 is not set")
ON_CPU = [*BACKENDS, pytest.param("triton", marks=interpreted)]  # all that serve CPU tensors if asked for by name
ISAS = ["baseline", "avx2", "avx512"]
MODES = ["update", "gradient"]
LAYOUTS = ["none", "one", "row", "column", "element"]
KINDS = ["l2", "l1"]
BYTES = torch.uint8
MASK_DTYPES = [torch.float32, BYTES]
# What goes together: a mask's layout and dtype, a pull's layout and kind. Without one there is nothing to choose.
MASKS = [("none", torch.float32), *product(LAYOUTS[1:], MASK_DTYPES)]
PULLS = [("none", "l2"), *product(LAYOUTS[1:], KINDS)]

# Against float64, of what has been rounded once to a format. float32: a handful of roundings of 6e-8 each. bfloat16:
# one unit, 2^-7, as stochastic rounding may choose the farther neighbor. Codes: a unit of three mantissa bits, 2^-3, or
# of the evenly spaced codes, 2^-17 and 2^-33 of the block's scale.
TOLERANCE = {
    "fp32": {"rtol": 2e-6, "atol": 1e-7},
    "bf16_sr": {"rtol": 2**-7, "atol": 1e-7},
    "codes": {"rtol": 2**-3, "atol": 0.0},
    "sum": {"rtol": 1e-5, "atol": 1e-5},  # some hundred float32 terms of order 1, in any order
}
TOLERANCES_OF = {  # of weight, first and second moment
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16_split": ("fp32", "fp32", "fp32"),
    "bf16_sr": ("bf16_sr", "fp32", "fp32"),
    "bf16": ("bf16_sr", "bf16_sr", "bf16_sr"),
    "int8": ("bf16_sr", "codes", "codes"),
}
EVEN_UNIT = (2.0**-17, 2.0**-33)  # of first and second moments
# Numbers, single elements, odd sizes, empty ones, and rows of whole and of broken blocks of 256.
SHAPES = [(1,), (17,), (4097,), (3, 5), (64, 33), (2, 3, 5), (), (0,), (0, 4), (3, 512), (3, 700)]
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

Tensors = list[torch.Tensor]
MaybeTensors = list[torch.Tensor | None]


@dataclass
class Case:
    """The tensors of one call; `step` applies the op to copies of them and returns these."""

    storage: str
    params: Tensors
    grads: Tensors
    exp_avgs: Tensors
    exp_avg_sqs: Tensors
    masks: MaybeTensors = field(default_factory=list)
    remainders: Tensors = field(default_factory=list)
    scales: Tensors = field(default_factory=list)
    anchors: MaybeTensors | None = None
    pulls: MaybeTensors | None = None

    def lists(self) -> list[Tensors]:
        return [self.params, self.grads, self.exp_avgs, self.exp_avg_sqs]

    def written(self) -> dict[str, Tensors]:
        """All that a step may change."""
        names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "remainders", "scales")
        return {name: getattr(self, name) for name in names}

    def copy(self) -> Case:
        return replace(self, **{name: [t.clone() for t in tensors] for name, tensors in self.written().items()})

    def to(self, device: torch.device | str) -> Case:
        def moved(tensors):
            return tensors if tensors is None else [t if t is None else t.to(device) for t in tensors]

        names = (*self.written(), "masks", "anchors", "pulls")
        return replace(self, **{name: moved(getattr(self, name)) for name in names})

    def arguments(self) -> dict:
        read = {"masks": self.masks or None, "anchors": self.anchors, "pulls": self.pulls}
        return {**self.written(), **read, "storage": self.storage}

    def step(self, **options) -> Case:
        result = self.copy()
        masked_adamw_(**result.arguments(), **{**OPTIONS, "step": 3, **options})
        return result

    def values(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weight and moments of a tensor in float64: what the stored bytes stand for."""
        p, m, v = self.params[index].double(), self.exp_avgs[index].double(), self.exp_avg_sqs[index].double()
        if self.remainders:
            word = self.params[index].view(torch.int16).int() * 65536 + self.remainders[index].int()
            p = word.view(torch.float32).double()
        if self.scales:
            scale = self.scales[index].double()
            m, v = (code_values(moment)[x.long()] * per_element(scale[..., i], p.shape)
                    for i, (moment, x) in enumerate((("first", m), ("second", v))))
        return p, m, v


def code_values(moment: str) -> torch.Tensor:
    """What the 256 codes stand for in units of the scale, in float64: the tests' own statement."""
    top = {"first": 15, "second": 31}[moment]
    code = torch.arange(256)
    magnitude = code % 128 if moment == "first" else code
    exponent, mantissa = magnitude // 8, (magnitude % 8).double()
    even, normal = mantissa * 2.0 ** (1 - top), (8 + mantissa) * 2.0 ** (exponent - top).double()
    values = torch.where(exponent == 0, even, normal) / 8
    return torch.where(code >= 128, -values, values) if moment == "first" else values


def per_element(of_blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    columns = shape[-1] if shape else 1
    return of_blocks.repeat_interleave(256, -1)[..., :columns].reshape(shape)


def make_factors(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> torch.Tensor | None:
    """Factors in [0, 1], a fifth of them exactly 0 and two fifths exactly 1."""
    if layout == "none":
        return None
    lead, last = (1,) * (len(shape) - 1), shape[-1:]
    size = {"one": lead + (1,) * len(last), "row": shape[:-1] + (1,) * len(last), "column": lead + last,
            "element": shape}[layout]
    return (torch.rand(size, generator=generator) * 5 / 3 - 1 / 3).clamp(0, 1)


def make_mask(shape: tuple[int, ...], layout: str, generator: torch.Generator,
              dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
    mask = make_factors(shape, layout, generator)
    return mask if mask is None or dtype == torch.float32 else (mask * 255).round().to(dtype)


def make_case(storage: str = "fp32", layout: str = "none", shapes=SHAPES, seed: int = 0,
              mask_dtype: torch.dtype = torch.float32, anchored: str = "none") -> Case:
    """Random tensors; `layout` is the mask's, `anchored` that of the anchors' strengths."""
    generator = torch.Generator().manual_seed(seed)
    form = STORAGES[storage]

    def normal(shape, dtype, scale=1.0):
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def codes(shape):
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    params, grads = ([normal(shape, form.weight) for shape in shapes] for _ in range(2))
    if form.scaled:
        firsts, seconds = ([codes(shape) for shape in shapes] for _ in range(2))
    else:
        firsts = [normal(shape, form.moment, 0.1) for shape in shapes]
        seconds = [normal(shape, form.moment, 0.1).square() for shape in shapes]
    case = Case(storage, params, grads, firsts, seconds)
    if form.scaled:
        case.scales = [torch.rand(scale_shape(shape), generator=generator) * 0.1 for shape in shapes]
    if form.remainder:
        case.remainders = [torch.randint(-2**15, 2**15, shape, generator=generator, dtype=torch.int16)
                           for shape in shapes]
    case.masks = [make_mask(shape, layout, generator, mask_dtype) for shape in shapes]
    if anchored != "none":
        case.anchors = [normal(shape, form.weight) for shape in shapes]
        case.pulls = [make_factors(shape, anchored, generator) * 200 for shape in shapes]  # times lr: some above 1
    return case


def mask_values(case: Case, index: int) -> torch.Tensor:
    """The factors of a tensor, one per element, in float64."""
    mask, shape = case.masks[index] if case.masks else None, case.params[index].shape
    if mask is None:
        return torch.ones(shape, dtype=torch.float64)
    return (mask.double() / 255 if mask.dtype == BYTES else mask.double()).expand(shape)


def in_float64(case: Case, step: int, mode: str, clip: float = 1.0, **options) -> list[tuple[torch.Tensor, ...]]:
    """Per tensor p, m and v after AdamW as Loshchilov and Hutter write it, with mask and anchor, in double precision:
    the tests' own statement. Where an update mask is 0 they are those of before."""
    o = {**OPTIONS, **options}
    lr, (b1, b2) = o["lr"], o["betas"]
    results = []
    for index, grad in enumerate(case.grads):
        (p, m, v), g, mask = case.values(index), grad.double() * clip, mask_values(case, index)
        if mode == "gradient":
            g = g * mask
        m_new, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        adam = (m_new / (1 - b1**step)) / ((v_new / (1 - b2**step)).sqrt() + o["eps"])
        p_new = p - lr * adam - lr * o["weight_decay"] * p
        pulled, kind = bool(case.anchors) and case.anchors[index] is not None, o.get("pull_kind", "l2")
        if pulled:
            anchor, pull = case.anchors[index].double(), lr * case.pulls[index].double()
        if pulled and kind == "l2":
            p_new = p_new - pull.clamp(max=1) * (p - anchor)
        if mode == "update":
            p_new = p + mask * (p_new - p)
        if pulled and kind == "l1":
            threshold = (mask if mode == "update" else 1) * pull
            p_new = anchor + (p_new - anchor).sign() * ((p_new - anchor).abs() - threshold).clamp(min=0)
        if mode == "update":
            p_new, m_new, v_new = (torch.where(mask == 0, a, b) for a, b in ((p, p_new), (m, m_new), (v, v_new)))
        results.append((p_new, m_new, v_new))
    return results


def assert_is_float64_step(case: Case, result: Case, step: int, mode: str, clip: float = 1.0, **options) -> None:
    """`result` is `case` after a step, element by element: within the rounding of the format, relative to the larger of
    the numbers before and after (as their difference may cancel), and with the same bytes where an update mask is 0."""
    for index, expected in enumerate(in_float64(case, step, mode, clip, **options)):
        still = mask_values(case, index) == 0 if mode == "update" else torch.zeros(expected[0].shape, dtype=torch.bool)
        for name in ("params", "exp_avgs", "exp_avg_sqs", "remainders"):
            if tensors := getattr(case, name):
                before, after = tensors[index], getattr(result, name)[index]
                assert torch.equal(bits(before)[still], bits(after)[still])
        kinds = dict(zip(("params", "exp_avgs", "exp_avg_sqs"), TOLERANCES_OF[case.storage], strict=True))
        for (name, kind), old, ours, exact in zip(kinds.items(), case.values(index), result.values(index), expected,
                                                  strict=True):
            bound = TOLERANCE[kind]["rtol"] * torch.maximum(old.abs(), exact.abs())
            if name == "params":  # of order 1; the step takes over what rounding made of a first moment near 0
                bound = bound + TOLERANCE[kind]["atol"]
            if kind == "codes":
                which = int(name == "exp_avg_sqs")
                bound = bound + EVEN_UNIT[which] * per_element(result.scales[index][..., which].double(), exact.shape)
            wrong = ((ours - exact).abs() > bound) & ~still
            assert not wrong.any(), f"{name}[{index}]{wrong.nonzero()[0].tolist()}: {ours[wrong]} for {exact[wrong]}"


def assert_same_bits(a: Case, b: Case) -> None:
    for name, tensors in a.written().items():
        for index, (x, y) in enumerate(zip(tensors, getattr(b, name), strict=True)):
            assert x.dtype == y.dtype and torch.equal(bits(x), bits(y)), f"{name}[{index}] differs"


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[x.element_size()])


def instruction_sets() -> list[str]:
    """Those of ISAS that this CPU can run."""
    if native.load_error() is not None:
        return ISAS  # the tests that use them are skipped
    best, found = native.isa(), []
    for name in ISAS:
        with suppress(ValueError):
            native.library().use_isa(name)
            found.append(name)
    native.library().use_isa(best)
    return found


@contextmanager
def instruction_set(name: str):
    """The native kernels compiled for an instruction set; skips the test where the CPU lacks it."""
    best = native.isa()
    try:
        native.library().use_isa(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        native.library().use_isa(best)


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
