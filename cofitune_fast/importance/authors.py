"""Import importance files written by the paper's own code (github.com/rattlesnakey/CoFiTune)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import CofituneError
from ..regions import Layout
from .importance import Importance
from .names import HEAD, NEURON, OUTPUT, unit_count

FILES = {NEURON: "intermediate_impt.npy", OUTPUT: "output_impt.npy", HEAD: "head_impt.npy"}


def import_authors_importance(folder: str | Path, layout: Layout, *, base: tuple[str, str] = ("", "")) -> Importance:
    """Read head_impt.npy, intermediate_impt.npy and output_impt.npy, each [layers, units] for all layers of the model.

    The files hold raw, SIGNED gate gradients, summed over batches; earlier batches are counted again in later ones, and
    the authors' code normalises them when it reads them. Scores of this package are >= 0, so the absolute value is
    taken. Two differences remain: signed sums over batches have cancelled in part, and |tanh(z)| of absolute values is
    not |tanh(z)| of the signed ones. Prefer scores that are computed by this package.

    base: (model source, fingerprint) of the measured model, which the files do not record.
    Raises CofituneError for a missing or damaged file, pickled content, shapes of another model, or a model whose
    layers have different numbers of units, which the files cannot hold.
    """
    counts = {kind: _count_in_all(layout, kind) for kind in FILES}
    scores = {kind: _read(Path(folder) / name, (layout.num_layers, counts[kind])) for kind, name in FILES.items()}
    settings = {"proxy": "kl_dropout", "imported_from": "authors' code, absolute values of signed sums"}
    return Importance(scores, tuple(range(layout.num_layers)), 0, *base, settings)


def _count_in_all(layout: Layout, kind: str) -> int:
    counts = [unit_count(layout, layer, kind) for layer in range(layout.num_layers)]
    if not counts[0] or len(set(counts)) > 1:
        raise CofituneError(
            f"The authors' files hold as many units {kind} for every layer, but the layers of this {layout.model_type} "
            f"model have {', '.join(map(str, sorted(set(counts))))} of them; compute the importance with this package."
        )
    return counts[0]


def _read(path: Path, shape: tuple[int, int]) -> Tensor:
    if not path.is_file():
        raise CofituneError(
            f"No importance file of the authors at {path}; the folder must hold {', '.join(FILES.values())}."
        )
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise CofituneError(f"{path} cannot be read as a plain NumPy array ({error}).") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shape:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise CofituneError(f"{path} must hold real numbers of shape {list(shape)} for this model, not {found}.")
    return torch.from_numpy(array.astype(np.float32)).abs()
