"""Experiment trackers of `report_to`: each training is a run of its own, with its files in the output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments

from ..errors import CofituneError


@contextmanager
def tracked(arguments: TrainingArguments) -> Iterator[None]:
    """Let wandb write below the output folder, unless WANDB_DIR is set, and end the run that it begins in the block.

    Trainer itself would leave the run open, so that the next training of the process would be logged into it.

    Raises:
        CofituneError: wandb cannot begin a run, for instance because nobody is logged in.
    """
    if "wandb" not in arguments.report_to:
        yield
        return
    import wandb

    begun, folder = wandb.run is not None, os.environ.get("WANDB_DIR")
    if folder is None:
        os.makedirs(arguments.output_dir, exist_ok=True)
        os.environ["WANDB_DIR"] = arguments.output_dir
    try:
        yield
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise CofituneError(f"Reporting to wandb failed ({reason}); log in, set WANDB_MODE=offline, or leave "
                            "training.report_to out.") from None
    finally:
        if folder is None:
            del os.environ["WANDB_DIR"]
        if not begun and wandb.run is not None:
            wandb.finish()
            wandb.teardown()  # wandb reads its settings once, and the next run may have another folder
