"""Per-token losses, and their values and gradients from the states before the head, without the full logits."""

from .chunked import Term, chunked_head, hidden_loss, response_loss, response_losses
from .objectives import LOSSES, CrossEntropy, Loss, Objective, ReverseTopKl, TopKl

__all__ = ["LOSSES", "CrossEntropy", "Loss", "Objective", "ReverseTopKl", "Term", "TopKl", "chunked_head",
           "hidden_loss", "response_loss", "response_losses"]
