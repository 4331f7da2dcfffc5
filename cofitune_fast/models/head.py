"""Send only selected positions through the language-model head.

The head is the widest matrix of a small model. Only response tokens are scored or trained on, so the other positions
need no logits. A hook on the head selects the positions for every family. Later steps of the model's own code, such as
soft-capping or scaling, still apply. `Head` describes the head and these steps, for callers that compute logits from
states themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from ..errors import CofituneError


@contextmanager
def select_positions(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Context in which `model(...).logits` has shape [1, mask.sum(), vocabulary].

    mask: bool [batch, tokens]; the selected positions come in row-major order, as in `hidden[mask]`.

    Gathering before the head keeps the head's backward a plain matrix product. For a strided slice of the hidden
    states PyTorch would expand the head weight once per sample.
    """
    def gather(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != mask.shape:
            raise CofituneError(
                f"The mask of positions is {tuple(mask.shape)}, but the head receives {tuple(hidden.shape[:2])} "
                "positions; call the model without `logits_to_keep`."
            )
        return hidden[mask.to(hidden.device)].unsqueeze(0)

    with at_head(model, gather):
        yield


def logits_at(model: nn.Module, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Compute the logits [N, vocabulary] at the N positions of the mask, in row-major order.

    batch: `input_ids` and `attention_mask`, each [batch, tokens]; other entries are not read. mask: bool
    [batch, tokens], on any device.
    """
    with select_positions(model, mask):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.logits[0]


@dataclass(frozen=True, eq=False)
class Head:
    """The head of a causal language model: logits = cap(scale * (states W^T + bias)), with cap(z) = c tanh(z / c).

    `Head.of` describes a model's head only where this is proven to be what the model computes.

    Attributes:
        linear: the module with W and bias. A sharded model's weights are other tensors outside of a forward, so they
            are read from it at each use.
        vocabulary: number of logits; a model may drop the last ones, which only pad W.
        scale: 1 in most families; Granite divides its logits by a number, Cohere and Falcon-H1 multiply them.
        softcap: c, as in Gemma 2; None: no cap.
    """

    linear: nn.Linear
    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: dict[str, Any] | None = None) -> Head | None:
        """Describe the head of `model`, or return None where its logits are something else.

        The model runs once without gradients, on `inputs` (by default one token). The head is given random states, and
        its output is compared with the linear function of these. Then the output is replaced by known numbers. Scale
        and cap are read from what the model makes of them, and must explain all of it. So no family is known by its
        name. On fake tensors, which have no values, the comparison is left out. Collective for a sharded model.
        """
        linear = _module(model)
        if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
            return _undescribed(model)  # quantised, an adapter, or more than one matrix
        if inputs is None:
            inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=linear.weight.device)}
        with unset_fake_temporarily():
            probe = _probe(len(linear.weight))
        linear_calls: list[bool] = []

        def replace(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            fake = isinstance(output, FakeTensor)
            linear_calls.append(fake or _is_linear(linear, given[0], output))
            real.enter_context(unset_fake_temporarily())  # the steps after the head see numbers
            return probe.to("cpu" if fake else output.device).expand(*output.shape[:-1], -1).clone()

        handle = linear.register_forward_hook(replace)
        try:
            with at_head(model, _random_like), torch.no_grad(), ExitStack() as real:
                logits = model(**inputs, use_cache=False).logits
                if linear_calls != [True]:
                    return _undescribed(model)
                return cls._fitted(linear, probe, logits.flatten(0, -2)[0].double().cpu()) or _undescribed(model)
        finally:
            handle.remove()

    @classmethod
    def _fitted(cls, linear: nn.Linear, probe: Tensor, found: Tensor) -> Head | None:
        """Return the head whose scale and cap turn the probe into `found`, if there is one."""
        probe = probe[: len(found)]
        scale = float(f"{found[0] / probe[0]:.12g}")  # without the digits that rounding may have touched
        limit = found[-1].abs().item()
        capped = limit < abs(scale * probe[-1].item()) / 2
        head = cls(linear, len(found), scale, limit if capped else None)
        return head if torch.allclose(head.scaled(probe.clone()), found, rtol=1e-5, atol=0) else None

    @property
    def weight(self) -> Tensor:
        """The weight [vocabulary, hidden]."""
        return self._cut(self.linear.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias [vocabulary], added before the scale, or None."""
        return None if self.linear.bias is None else self._cut(self.linear.bias)

    def scaled(self, raw: Tensor) -> Tensor:
        """Turn outputs of the linear part [..., vocabulary] into logits, in their dtype and place, without autograd."""
        if self.scale != 1:
            raw.mul_(self.scale)
        return raw if self.softcap is None else raw.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Compute the cap's derivative at each of the logits, 1 - (logit / c)^2, as a new tensor; None: no cap."""
        return None if self.softcap is None else (logits / self.softcap).square_().neg_().add_(1)

    @property
    def plain(self) -> bool:
        """True if the logits are neither scaled nor capped."""
        return self.scale == 1 and self.softcap is None

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits [..., vocabulary] of head inputs [..., hidden], in the model's dtype, without autograd."""
        return self.scaled(nn.functional.linear(states, self.weight, self.bias))

    def _cut(self, tensor: Tensor) -> Tensor:
        return tensor if len(tensor) == self.vocabulary else tensor[: self.vocabulary]


def states_at(model: nn.Module, inputs: dict[str, Any], places: Tensor) -> Tensor:
    """Compute the head's inputs [N, hidden] at `places`, int64 [N], in the flattened [batch * tokens]; differentiable.

    inputs: arguments of the model's forward, which runs with no token for the head.
    """
    chosen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        chosen.append(states.flatten(0, 1)[places])
        # The model goes on with zero tokens: for one token, not contiguous here, PyTorch would copy the head's weight.
        return states[:1, :0].detach()

    with at_head(model, keep):
        model(**inputs, use_cache=False)
    return chosen[0]


@contextmanager
def at_head(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Context in which the model's head receives change(states) instead of the states [batch, tokens, hidden]."""
    handle = _module(model).register_forward_pre_hook(lambda _module, given: (change(given[0]), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


def final_norm(model: nn.Module) -> nn.Module | None:
    """Find the module whose output is the head's input; None where another operation comes between.

    The model runs once without gradients, on one token. Collective for a sharded model.
    """
    head = _module(model)
    outputs: list[tuple[Tensor, nn.Module]] = []  # all are kept, so that no memory serves twice
    found: list[nn.Module] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((output, module))

    def look(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        states = given[0]
        found.extend(module for output, module in outputs
                     if output.data_ptr() == states.data_ptr() and output.shape == states.shape)

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            hooks.callback(module.register_forward_hook(note).remove)
        hooks.callback(head.register_forward_pre_hook(look).remove)
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=head.weight.device), use_cache=False)
    return found[0] if found else None


def _module(model: nn.Module) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise CofituneError(f"{type(model).__name__} has no language-model head; a causal language model is needed.")
    return head


def _undescribed(model: nn.Module) -> None:
    """Log that the fast paths that compute logits from states are off for `model`."""
    logging.getLogger("cofitune_fast").info(
        "The logits of %s are not a scaled or capped linear function of its last states, so its losses and its drift "
        "are computed from the model's own logits.", type(model).__name__)


def _probe(vocabulary: int) -> Tensor:
    """Numbers float64 [vocabulary] of both signs. No cap changes the first one, and any cap is reached by the last."""
    signs = 1 - 2 * (torch.arange(vocabulary) % 2)
    return torch.exp2(torch.linspace(-30, 40, vocabulary, dtype=torch.float64)) * signs


def _random_like(states: Tensor) -> Tensor:
    """Normal numbers of the shape, dtype and device of `states`, without use of torch's random state."""
    if isinstance(states, FakeTensor):
        return states
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)


def _is_linear(linear: nn.Linear, states: Tensor, output: Tensor) -> bool:
    """True if `output` is the linear function of `states`, up to rounding; NaN equals NaN."""
    if linear.weight.is_meta or states.dtype != linear.weight.dtype:
        return False
    expected = nn.functional.linear(states, linear.weight, linear.bias).float()
    tolerance = 0.01 * expected.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(output.float(), expected, rtol=0.01, atol=tolerance, equal_nan=True)
