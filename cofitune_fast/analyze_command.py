"""`cofitune analyze`: a base and its deltas, read layer by layer; writes analysis.json."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .analysis import analyze, find_variants
from .config import Config
from .environment import environment
from .errors import CofituneError
from .files import writable_folder, write_json
from .models import load_model
from .models.sharded import started_by_torchrun
from .regions import BaseInfo
from .scoring import read_task

ROWS = 100
"""The first rows of the data file that are read where no limit is given."""


def write_analysis(
    settings: Config, deltas: Sequence[str | Path], output: str | Path, *, limit: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Measure the base of `settings` and the deltas on settings.data.test, and write OUTPUT/analysis.json; its path.

    What can be refused without the model is refused before it is loaded.
    """
    section, file = settings.model, settings.data.test
    if started_by_torchrun():
        raise CofituneError("analyze runs in one process; start it without torchrun.")
    if section.quantize != "none":
        raise CofituneError("analyze compares weights in full precision; leave model.quantize out.")
    if file is None:
        raise CofituneError("There are no rows to read; give --data.test FILE with prompts and their responses.")
    variants = find_variants(deltas)
    task = read_task(file, limit=limit or ROWS)
    output = writable_folder(output)
    tell(f"Loading {section.path}")
    loaded = load_model(section.path, dtype=section.dtype, device=section.device, gguf_file=section.gguf_file,
                        attn_implementation=section.attn_implementation)
    base = BaseInfo.of(loaded.model, loaded.source)
    measured = analyze(loaded.model, loaded.tokenizer, task, variants, base, max_length=settings.data.max_length,
                       tell=lambda name: tell(f"Reading {name}"))
    measured["data"]["file"] = str(file)
    write_json(output / "analysis.json", {
        "title": settings.title if "title" in settings.model_fields_set else "Where the speciality enters",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["cofitune", *sys.argv[1:]]),
        "base": {"model": base.model, "fingerprint": base.fingerprint, "dtype": base.dtype,
                 "parameters": loaded.model.num_parameters()},
        **measured,
        "environment": environment(),
    })  # fmt: skip
    return output / "analysis.json"
