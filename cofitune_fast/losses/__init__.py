"""Per-token losses, and their values and gradients from the states before the head, without the full logits."""

from .chunked import Term, hidden_loss, response_loss, response_losses, takes_chunks
from .objectives import LOSSES, CrossEntropy, Loss, Objective, ReverseTopKl, TopKl

__all__ = ["LOSSES", "CrossEntropy", "Loss", "Objective", "ReverseTopKl", "Term", "TopKl", "hidden_loss",
           "response_loss", "response_losses", "takes_chunks"]
