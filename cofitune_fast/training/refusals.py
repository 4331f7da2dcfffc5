"""Arguments and models that CoFiTuneTrainer does not take, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import CofituneError

NO_LOGITS = "no logits are kept, so that only the loss can be measured; score the model by cofitune evaluate"
_OWN_STEPS = ("the steps are MaskedAdamW's on the region's parameters; a subclass goes into "
              "TrainOptions.optimizer_kind, a schedule into args.lr_scheduler_type and lr_scheduler_kwargs")
NOT_TAKEN = {
    "data_collator": "rows are batched by the trainer itself, with or without packing",
    "compute_loss_func": "the loss is the one that TrainOptions.loss names",
    "compute_metrics": NO_LOGITS,
    "preprocess_logits_for_metrics": NO_LOGITS,
    "model_init": "give the model itself",
    "optimizers": _OWN_STEPS,
    "optimizer_cls_and_kwargs": _OWN_STEPS,
}
"""Arguments of transformers.Trainer that are not taken, and why or what to do."""


def check_taken(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of transformers.Trainer that have no meaning here.

    Raises:
        CofituneError: one sentence that names the argument and says why, or what to do.
    """
    for name, reason in NOT_TAKEN.items():
        if arguments.get(name) not in (None, (None, None)):
            raise CofituneError(f"CoFiTuneTrainer does not take {name}: {reason}.")


def check_bare(model: Any) -> None:
    """Refuse what is no bare model.

    Raises:
        CofituneError: the model is wrapped or compiled, or no model at all.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise CofituneError(f"The model is wrapped in {type(model).__name__}; give model.module, and start the program "
                            "under torchrun where several GPUs train together.")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise CofituneError("The model is compiled, and would be compiled anew at every step, because its frozen "
                            "layers are skipped; give the model as it was before torch.compile.")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise CofituneError(f"model is {type(model).__name__}, and the trainer needs a causal language model of "
                            "transformers; cofitune_fast.load_model loads one.")
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise CofituneError(f"The model is a {type(model).__name__}, which has no head; give the model for causal "
                            "language modelling, as cofitune_fast.load_model loads it.")
