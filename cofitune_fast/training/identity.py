"""Identity of a run: everything that decides its result, as plain JSON values that can be stored and compared."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Encoded
from ..models.sharded import world_size
from ..optim.sharding import local
from ..regions import BaseInfo, Trainable
from .argument_rules import CHECKPOINT_MINUTES, DEFAULTS, PATIENCE
from .arguments import decisive, evaluates
from .options import TrainOptions

DIGESTS = "digests"
"""Key of the digests of what is made from the settings and the data; they differ alone only if the files' content or
what the base writes has changed."""


_WITHOUT_INFLUENCE = (
    "use_cpu", "resume_from_checkpoint", CHECKPOINT_MINUTES, "save_on_each_node", "save_only_model",
    "enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "gradient_checkpointing",
    "activation_checkpointing",
)



def run_identity(
    region: Trainable | str, training: Mapping[str, Any], options: TrainOptions, rows: Sequence[Encoded],
    eval_rows: Sequence[Encoded] | None, base: BaseInfo,
) -> dict[str, Any]:
    """Return what decides the result of `train_region` with these arguments.

    training: with its learning rate, see `with_learning_rate`.
    """
    anchor = options.anchor if options.anchor is not None and options.anchor.settings.weight > 0 else None
    return plain({
        "region": str(region),
        "base": {"fingerprint": base.fingerprint, "dtype": base.dtype},
        "training": deciding(training),
        "processes": world_size(),
        "loss": options.loss,
        "anchor": anchor.settings.identity() if anchor else {"weight": 0.0},
        "reference": asdict(options.reference) if options.reference is not None else None,
        "mask_mode": options.mask_mode if options.masks else None,
        "pull": [options.pull.kind, options.pull.strength] if options.pull is not None else None,
        "optimizer": options.optimizer_kind,
        "storage": options.storage,
        "memory": {"packing": options.memory.packing, "gradient_release": options.memory.gradient_release},
        DIGESTS: {
            "rows": rows_digest(rows),
            "anchor's texts": rows_digest(anchor.rows) if anchor else None,
            "validation rows": rows_digest(eval_rows) if eval_rows and _judged(training) else None,
            "masks": _tensors_digest(options.masks),
            "units of the pull": _tensors_digest(options.pull.units if options.pull is not None else None),
        },
    })


def deciding(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training arguments that decide the result, with their defaults.

    When checkpoints are written does not, and evaluations do only where they choose the weights, the rate or the end.
    """
    chosen, judged = decisive({**DEFAULTS, **training}), _judged(training)
    without = _WITHOUT_INFLUENCE if judged else (*_WITHOUT_INFLUENCE, "eval_", "save_", "per_device_eval_batch_size")
    return plain({key: value for key, value in chosen.items() if not key.startswith(without)})


def _judged(training: Mapping[str, Any]) -> bool:
    return evaluates(training) and bool(training.get("load_best_model_at_end") or training.get(PATIENCE)
                                        or training.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"))


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List how two identities differ, see `differences`; only keys of `now` count.

    Digests count only where all else is the same, as they follow from it; they are named without their values.
    """
    found = differences({key: was.get(key) for key in now if key != DIGESTS},
                        {key: value for key, value in now.items() if key != DIGESTS})
    if found or DIGESTS not in now:
        return found
    return [f"the {name} are other ones" for name, digest in now[DIGESTS].items()
            if digest != (was.get(DIGESTS) or {}).get(name)]


def differences(was: Any, now: Any, where: str = "") -> list[str]:
    """List what changed, key by key: "training.learning_rate was 0.0004, is 0.0001"."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [text for key in sorted({*was, *now})
                for text in differences(was.get(key), now.get(key), f"{where}.{key}" if where else key)]
    if _is_digest(was) and _is_digest(now):
        return [] if was == now else [f"the content of {where} has changed"]
    shown = ["not set" if value is None else json.dumps(value) for value in (was, now)]
    return [] if was == now else [f"{where} was {shown[0]}, is {shown[1]}"]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", value) is not None


def plain(values: Any) -> Any:
    """Return `values` as JSON reads them back: tuples become lists, and what JSON does not know its text."""
    return json.loads(json.dumps(values, default=str))


def rows_digest(rows: Sequence[Encoded]) -> str:
    """Return a digest of what is trained of encoded rows: ids and marks; not the numbers that a base computed."""
    return _digest(part for row in rows for part in _parts(row))


def _parts(row: Any) -> Iterable[bytes]:
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name == "where" or value is None:
            continue
        if is_dataclass(value):
            yield from _parts(value)
        elif isinstance(value, Tensor):
            if not value.is_floating_point():
                yield _bytes(value)
        elif isinstance(value, list) and all(type(entry) is int for entry in value):
            yield array("q", value).tobytes()
        else:
            yield repr(value).encode()
        yield b"|" + field.name.encode()


def _bytes(tensor: Tensor) -> bytes:
    return local(tensor.detach()).cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()


def _tensors_digest(tensors: Mapping[str, Tensor] | None) -> str | None:
    parts = (part for name in sorted(tensors or {}) for part in (name.encode(), _bytes(tensors[name])))
    return _digest(parts) if tensors else None


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
