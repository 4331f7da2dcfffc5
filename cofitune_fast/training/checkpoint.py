"""Training checkpoints without pickle: tensors in safetensors, everything else in JSON.

Beside the delta and Trainer's own `trainer_state.json`, a checkpoint folder holds `optimizer.safetensors` (the
optimizer's tensors in their own dtypes, as "parameter name/exp_avg") and `training_state.json` (its numbers, the
learning-rate scheduler's state and the states of the random number generators). One-element tensors, such as a step
counted on the device, are saved as numbers.
"""

from __future__ import annotations

import base64
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CofituneError
from ..files import atomic_path, read_json, write_json
from ..models.sharded import rank, whole_on_rank_0

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"


def save_training_state(folder: str | Path, optimizer_state: dict[str, Any], scheduler_state: dict[str, Any]) -> None:
    """Save the states of optimizer, scheduler and random number generators.

    Of a sharded model all ranks call it, and rank 0 writes.

    Args:
        optimizer_state: the result of `MaskedAdamW.state_dict()`.
    """
    folder = Path(folder)
    tensors, numbers = {}, {}
    for name, state in optimizer_state["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor) and key != "step":
                tensors[f"{name}/{key}"] = whole_on_rank_0(value)
            else:
                numbers.setdefault(name, {})[key] = _plain(value)
    if rank() != 0:
        return
    rest = {key: _plain(value) for key, value in optimizer_state.items() if key != "state"}
    with atomic_path(folder / OPTIMIZER_FILE) as temporary:
        save_file(tensors, temporary)
    write_json(folder / STATE_FILE, {
        "optimizer": {"numbers": numbers, **rest},
        "scheduler": {key: _plain(value) for key, value in scheduler_state.items() if _is_plain(value)},
        "random": random_states(),
    })


def load_training_state(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Load the optimizer's state, the scheduler's state and the random states of a checkpoint folder.

    Raises:
        CofituneError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    content = read_json(folder / STATE_FILE, "training state")
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in content["optimizer"]["numbers"].items()}
    try:
        with safe_open(folder / OPTIMIZER_FILE, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                name, _, part = key.rpartition("/")
                state.setdefault(name, {})[part] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise CofituneError(f"The optimizer state {folder / OPTIMIZER_FILE} cannot be read ({error}); resume from an "
                            "earlier checkpoint.") from None
    rest = {key: value for key, value in content["optimizer"].items() if key != "numbers"}
    return {"state": state, **rest}, content["scheduler"], content["random"]


def find_checkpoint(wanted: str | bool, folder: str | Path) -> str:
    """Return the checkpoint to resume from: the last complete one in `folder` if `wanted` is True, or the one it names.

    Raises:
        CofituneError: there is none.
    """
    if wanted is True:
        found = last_complete_checkpoint(folder)
        if found is None:
            raise CofituneError(f"There is no complete checkpoint in {folder} to go on from; leave "
                                "training.resume_from_checkpoint out.")
        return found
    if not Path(wanted).is_dir():
        raise CofituneError(f"training.resume_from_checkpoint is {wanted}, which is no folder; name a checkpoint, or "
                            "write true for the last one.")
    return str(wanted)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint, or None; Trainer's state is the last file of a checkpoint."""
    needed = ("delta.safetensors", "cofitune.json", OPTIMIZER_FILE, STATE_FILE, "trainer_state.json")
    found = [
        path for path in Path(folder).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name) and all((path / name).is_file() for name in needed)
    ]
    return str(max(found, key=lambda path: int(path.name.split("-")[1]))) if found else None


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's random number generators as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": _encode(torch.random.get_rng_state()),
        "cuda": [_encode(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.random.set_rng_state(_decode(states["torch"]))
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_decode(state) for state in states["cuda"]])


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, list, type(None), Tensor))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, Tensor) else value
