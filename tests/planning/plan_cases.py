"""One training step as the trainer does it, on real tensors or fake ones, and what it really held."""

from __future__ import annotations

import torch

from cofitune_fast.losses.chunked import chunked_head, response_loss
from cofitune_fast.memory.gradient_hooks import backward
from cofitune_fast.memory.prefix import FrozenPrefix


def make_batch(rows, length, response, *, vocabulary=200):
    """Ids and a mask with padding in the last row, as a padded batch has; places that predict a response, and it."""
    ids = torch.randint(4, vocabulary, (rows, length))
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    places = (torch.arange(rows)[:, None] * length + torch.arange(length - response, length)).flatten()
    return {"input_ids": ids, "attention_mask": mask}, places, torch.randint(4, vocabulary, (rows * response,))


class TrainingStep:
    """Forward, loss and backward of `region`'s step; __call__ runs it and drops the gradients.

    checkpointing, release ("off" or "exact"), cached (the states below the region are given): as Settings.
    """

    def __init__(self, model, region, batch, *, checkpointing=False, release="off", cached=False):
        self.model, self.batch, self.release, self.cached = model, batch, release, cached
        self.trained = [parameter for _, parameter in region.apply(model)]
        self.head = chunked_head(model)
        self.prefix = FrozenPrefix.of(model, region)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        if self.prefix is not None:
            self.prefix.__enter__()  # as long as the model lives

    def forward(self):
        """The loss."""
        inputs, places, targets = self.batch
        self.model.train()
        if not self.cached:
            return response_loss(self.model, inputs, places, targets, 1.0, head=self.head)
        states = torch.empty(*inputs["input_ids"].shape, self.model.config.hidden_size, dtype=self.model.dtype)
        with self.prefix.replaced_by(states):
            del states
            return response_loss(self.model, inputs, places, targets, 1.0, head=self.head)

    def __call__(self):
        loss = self.forward()
        if self.release == "off":
            loss.backward()
        else:
            for retain in (True, False):
                backward(loss, self.trained, lambda p: setattr(p, "grad", None), retain_graph=retain)
        for parameter in self.trained:
            parameter.grad = None
        self.model.eval()
