"""Training checkpoints without pickle: tensors in safetensors, everything else in JSON.

Beside the delta and Trainer's own `trainer_state.json`, a checkpoint folder holds `optimizer.safetensors` (the
optimizer's tensors in their own dtypes, as "parameter name/exp_avg") and `training_state.json` (its numbers, the
learning-rate scheduler's state and the states of the random number generators). One-element tensors, such as a step
counted on the device, are saved as numbers.

`checkpoint.json` is written last, when all other files are on the disk. It holds their digests, the identity of the run
and the run's figures so far. A folder without it, or with other bytes than it says, is no checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CofituneError, first_line
from ..files import atomic_path, sync
from ..json_text import read_json, write_json
from ..models.sharded import rank, whole_on_rank_0

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"
DESCRIPTION = "checkpoint.json"
_VERSION = 1
_STATE = {  # form of the file, see `json_text.flaw`
    "optimizer": {"numbers": {str: dict}, "param_groups": [{
        "params": [(str, int)], "lr?": float, "betas?": [float], "eps?": float, "weight_decay?": float}]},
    "scheduler": dict,
    "random": {"python": list, "numpy": list, "torch": str, "cuda": [str]},
}
_NEEDED = {"delta.safetensors", "cofitune.json", OPTIMIZER_FILE, STATE_FILE, "trainer_state.json"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what its description says.

    Attributes:
        run: random name of the run that wrote it; a resumed run keeps its name.
        identity: see `identity.run_identity`.
        figures: see `Figures`.
        temporary: it was saved by time or by a signal, and is removed when a newer one or the result is there.
        began: day on which the run began, YYYY-MM-DD.
        resumable: it holds all that a run needs to go on, not the delta alone.
    """

    path: Path
    step: int
    run: str
    identity: dict[str, Any]
    figures: dict[str, Any]
    temporary: bool
    began: str
    files: dict[str, str]

    @classmethod
    def read(cls, folder: str | Path) -> Checkpoint | None:
        """Read the description of a checkpoint; None if the folder has none or it is damaged."""
        folder = Path(folder)
        try:
            content = read_json(folder / DESCRIPTION, "description of a checkpoint")
            if content["version"] != _VERSION:
                return None
            found = cls(folder, *(content[field.name] for field in fields(cls) if field.name != "path"))
            kinds = {"step": int, "run": str, "identity": dict, "figures": dict, "temporary": bool, "began": str,
                     "files": dict}
            right = all(type(getattr(found, name)) is kind for name, kind in kinds.items())
            return found if right and all(Path(name).name == name for name in found.files) else None
        except (CofituneError, ValueError, RecursionError, KeyError, TypeError):
            return None

    @property
    def resumable(self) -> bool:
        return self.files.keys() >= _NEEDED

    def whole(self) -> bool:
        """True if all files have the bytes that were written."""
        return all((self.path / name).is_file() and _file_digest(self.path / name) == digest
                   for name, digest in self.files.items())


def complete_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the description of a checkpoint whose files are all there; they are brought to the disk first.

    content: the fields of Checkpoint without path and files.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != DESCRIPTION]
    for path in files:
        sync(path)
    sync(folder)
    write_json(folder / DESCRIPTION, {"version": _VERSION, **content,
                                      "files": {path.name: _file_digest(path) for path in files}})


def checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Return the checkpoints in `folder` that have a description, the one with the most steps first."""
    found = [Checkpoint.read(path) for path in _folders(folder)]
    return sorted((one for one in found if one is not None), key=lambda one: one.step, reverse=True)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint, or None; one whose bytes have changed is passed over."""
    found = next((one for one in checkpoints(folder) if one.resumable and one.whole()), None)
    return str(found.path) if found is not None else None


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
    named = Checkpoint.read(wanted)
    if named is None or not named.resumable or not named.whole():
        raise CofituneError(f"The checkpoint {wanted} is incomplete, damaged or of an earlier version; name another "
                            "one, or write true for the last complete one.")
    return str(wanted)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; killed in the middle, what is left is no checkpoint."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rotate(folder: Path, newest: Checkpoint, limit: int | None, best: str | None) -> None:
    """Remove the run's older checkpoints: all temporary ones, and of the others those beyond `limit`, by their steps.

    best: checkpoint that is never removed. Checkpoints of other runs stay.
    """
    protected = {newest.path, *([Path(best)] if best else [])}
    own = [one for one in checkpoints(folder) if one.run == newest.run]
    kept = [one for one in own if not one.temporary]
    old = [one for one in own if one.temporary]
    if limit is not None and limit > 0:
        room = limit - sum(one.path in protected for one in kept)
        old += [one for one in kept if one.path not in protected][max(room, 0):]
    for one in old:
        if one.path not in protected:
            remove_checkpoint(one.path)


def sweep(folder: str | Path, *, not_of: str | None = None) -> None:
    """Remove checkpoint folders that nobody needs any more when a run has written its result.

    Those are temporary checkpoints and such as a kill has left half-written.

    not_of: remove the checkpoints of all runs but this one, too.
    """
    for path in _folders(folder):
        one = Checkpoint.read(path)
        if one is None:
            needless = not (path / DESCRIPTION).exists() and not _is_json(path / "trainer_state.json")
        else:
            needless = one.temporary or (not_of is not None and one.run != not_of)
        if needless:
            remove_checkpoint(path)


def _folders(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _is_json(path: Path) -> bool:
    try:
        read_json(path, "state of a training")
    except (CofituneError, ValueError, RecursionError):
        return False
    return True


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_training_state(folder: str | Path, optimizer_state: dict[str, Any], scheduler_state: dict[str, Any]) -> None:
    """Save the states of optimizer, scheduler and random number generators.

    Of a sharded model all ranks call it, and rank 0 writes.

    Args:
        optimizer_state: the result of the optimizer's `state_dict`, MaskedAdamW's or another one's of tensors and
            numbers.
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
    content = read_json(folder / STATE_FILE, "training state", _STATE)
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
    # JSON has made texts of the numbers by which torch's optimizers know parameters.
    known = {str(name): name for group in rest["param_groups"] for name in group["params"]}
    by_name = {known.get(name, name): values for name, values in state.items()}
    return {"state": by_name, **rest}, content["scheduler"], content["random"]


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
    """Set the generators to what `random_states` returned.

    Raises:
        CofituneError: a generator does not take its state.
    """
    try:
        version, internal, gauss_next = states["python"]
        random.setstate((version, tuple(internal), gauss_next))
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.random.set_rng_state(_decode(states["torch"]))
        if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_decode(state) for state in states["cuda"]])
    except (TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:  # each knows its own form
        raise CofituneError("The checkpoint's states of the random number generators are damaged "
                            f"({first_line(error)}); resume from an earlier checkpoint.") from None


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
