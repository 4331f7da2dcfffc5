"""Write a commented run.yaml for a model, data and a card: region, lengths and memory settings with their reasons."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from ..config import Config, load_config, parse_overrides
from ..data.look import counted
from ..display import shown_progress
from ..environment import environment
from ..errors import CofituneError
from ..files import free_bytes, make_folder, write_text
from ..memory.settings import parse_size, prefix_cache_folder
from ..models.loading import load_outline
from ..planning.plan import MemoryPlan
from ..progress import progress
from ..regions import DEFAULT_REGION
from ..trials import DataLook, read_data
from ..trials.look import PARTS, SPLITS
from .app import AsJson, command, console, emit, tell
from .plan import NothingFits, gib, keys_of_plan, plan_within
from .run_yaml import Entry, remark, written
from .setup import check_files, trial_data

REGIONS = (DEFAULT_REGION, "ffn@50%-75%", "ffn.up+ffn.down@50%-75%", "ffn.down@50%-75%")
"""Regions that are tried, the next where nothing fits with the one before."""
_FREE = 0.1  # share of the memory that the plan leaves to the driver, the allocator and other programs
_STEP = 64  # tokens to which max_length is rounded up
_LONG = 2048  # tokens of a longest row up to which no row is cut
_FEW_BAD = 0.05  # share of bad rows up to which they are left out
_MANY_ROWS = 10_000  # rows from which one epoch will do
_HEAD = """Written by `cofitune init`; each value stands with its reason. `cofitune train -h` lists all other keys.
A key on the command line goes before this file: cofitune train --config FILE --training.num_train_epochs 3"""
_NO_SUITE = """No versatility tasks are given. Training needs none: the anchor holds the model to its base.
But without them nothing measures whether the model has kept its other abilities, and `cofitune run` and
`cofitune search` need them to choose a region. To add them, make two folders with the files knowledge/*.jsonl,
reasoning/*.jsonl and instruction/*.jsonl (docs/scoring.md says what is in them), and take these lines in:
versatility:
  valid: suite/valid
  test: suite/test"""
_ROWS, _STEPS = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"


@command
def init(
    context: typer.Context,
    as_json: AsJson = False,
    card: Annotated[str | None, typer.Option(help="Memory of the card that will train, such as 24GiB; by default this "
                                             "machine's GPU, else its memory.")] = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("run.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a commented run.yaml: --model MODEL --data.train FILE.

    The rows are read and the memory is planned; no weights are loaded. Every value stands with its reason, and keys
    that are given, such as --data.valid FILE or --region TEXT, are kept."""
    given = parse_overrides(context.args)
    output = output.expanduser()
    if output.exists() and not overwrite:
        raise CofituneError(f"{output} is there already; give --overwrite to replace it, or --output for another file.")
    settings = load_config(None, given)
    with shown_progress(console):
        entries = chosen(settings, given, card)
    make_folder(output.parent)
    write_text(output, written(entries))
    kept = [entry for entry in entries if entry.key and not entry.off]
    values = {entry.key: entry.value for entry in kept}
    following = f"cofitune {'run' if _whole_job(settings) else 'train'} --config {shlex.quote(str(output))}"
    reasons = {entry.key: entry.reason for entry in kept}
    emit({"path": str(output), "settings": values, "reasons": reasons, "next": following}, as_json, lambda: tell(
        f"{output}: {values['region']}, {values[_ROWS]} x {values['data.max_length']} tokens, {values['storage']}",
        f"Next: {following}"))


def chosen(settings: Config, given: dict[str, Any], card: str | None = None) -> list[Entry]:
    """Choose the settings of a run for its model, data and card.

    Args:
        settings: model, data and what else is given; data.max_length, region and plan are filled in.
        given: the keys that are given, which are kept.
        card: memory such as "24GiB"; None to take this machine's.

    Raises:
        CofituneError: model or data are not named or cannot be used, or nothing fits.
    """
    given = {{"model": "model.path", "data": "data.train", "versatility": "versatility.valid"}.get(key, key): value
             for key, value in given.items()}
    model = settings.model
    if model is None:
        raise CofituneError("This command needs the model: give --model FOLDER, a hub id or a GGUF file.")
    if settings.data.train is None:
        raise CofituneError("This command needs the data, which decide the lengths: give --data.train FILE. A row is "
                            'such as {"prompt": "...", "completion": "..."}.')
    memory = memory_of(card, model.device)
    if memory.host:
        model.device = "cpu"  # so that what is kept on the host counts too
    check_files(settings)
    with progress("Looking at the data"):
        look = _look(settings, "data.on_bad_row" not in given)
    with progress("Planning the memory"):
        plan, losses = _plan(settings, given, look, memory)
    of_plan = {entry.key: entry for entry in _of_plan(plan, losses, settings, memory)}
    rows = look.files["train"].good
    entries = [remark(_HEAD), *_of_data(settings, look, plan.settings.quantize),
               *_of_versatility(settings),
               Entry("region", settings.region, _why_region(settings.region, given)),
               Entry("anchor.weight", settings.anchor.weight, "holds the rest to the base; 0: no anchor"),
               *_of_training(settings, given, rows, of_plan),
               *(entry for key, entry in of_plan.items() if not key.startswith("training.")),
               Entry("output", "runs/first", "the delta and all else that comes out")]
    if settings.versatility.valid is None and settings.versatility.test is None:
        entries.append(remark(_NO_SUITE))
    return _with_given(entries, given)


class Memory(NamedTuple):
    """Bytes that a plan may use, and whose they are. host: they are this machine's, and no card's."""

    size: int
    whose: str
    host: bool = False


def memory_of(card: str | None, device: str | None = None) -> Memory:
    """Return the memory of a card that is named, of the first GPU, or what this machine has available, less a tenth.

    Raises:
        CofituneError: `card` is no size.
    """
    if card is not None:
        size, whose = parse_size(card, "--card"), "given by --card"
    elif torch.cuda.is_available() and not str(device).startswith("cpu"):
        size, whose = torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    else:
        size, whose = _available(), "available here"
    return Memory(int((1 - _FREE) * size), f"{gib(size)}, {whose}", host=whose == "available here")


def _available() -> int:
    """Bytes of memory that a program can still have here, within the limit of its container if there is one."""
    free = [environment()["memory_bytes"] or 2**33]
    with suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines.get("MemAvailable", "none").split()[0]) * 1024)
    with suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(1, min(free))


# The data -------------------------------------------------------------------------------------------------------------


def _look(settings: Config, count_bad: bool) -> DataLook:
    """Look at the rows without cutting them; bad ones are counted, and refused where they are many."""
    section = settings.model
    outline = load_outline(section.path, gguf_file=section.gguf_file, dtype=section.dtype, device=section.device)
    data = replace(trial_data(settings), max_length=outline.positions or 2**20,
                   on_bad_row="skip" if count_bad else settings.data.on_bad_row)
    parts = [part for part in PARTS if getattr(data, part) is not None]
    look = read_data(data, parts, [split for split in SPLITS if split in parts])
    look.encode(outline)
    look.require()
    file = look.files["train"]
    bad = file.rows - file.good
    if count_bad and bad > _FEW_BAD * file.rows:
        raise CofituneError(f"{bad:,} of {counted(file.rows, 'row')} of {file.path} cannot be used: "
                            f"{file.faults.sentence}. Mend them, which `cofitune data` shows, or give "
                            "--data.on_bad_row skip.")
    if bad:
        settings.data.on_bad_row = data.on_bad_row
    return look


def _lengths(look: DataLook, settings: Config, given: dict[str, Any]) -> Iterator[int]:
    """Yield lengths to try, the longest first: all rows whole, if they are not very long, then fewer of them."""
    if "data.max_length" in given:
        yield settings.data.max_length
        return
    lengths, positions = sorted(look.files["train"].encoded.lengths), look.outline.positions or math.inf
    shares = (1.0, 0.95, 0.75) if lengths[-1] <= _LONG else (0.99, 0.95, 0.75, 0.5)
    found = [lengths[max(0, math.ceil(share * len(lengths)) - 1)] for share in shares]
    yield from dict.fromkeys(int(min(positions, max(_STEP, _STEP * math.ceil(length / _STEP)))) for length in found)


def _of_data(settings: Config, look: DataLook, quantize: str) -> Iterator[Entry]:
    model, file, data = settings.model, look.files["train"], settings.data
    template = "" if look.outline.tokenizer.chat_template else "it has no chat template, so rows get a plain format"
    yield Entry("model.path", model.path, template)
    if model.gguf_file:
        yield Entry("model.gguf_file", model.gguf_file, "")
    if quantize != "none":
        yield Entry("model.quantize", quantize, "of all but the region, to fit; needs pip install "
                    "'cofitune-fast[quantize]'")
    if look.twice and look.twice.prompt:
        yield remark(f"{counted(len(look.twice.prompt), 'training row')} repeat an earlier prompt, "
                     f"{len(look.twice.exact):,} with its response too; `cofitune data` shows them.")
    for overlap in look.overlaps:
        yield remark(f"Mind: {overlap.sentence}.")
    yield Entry("data.train", data.train, f"{counted(file.good, 'usable row')} ({file.form})")
    for split, purpose in (("valid", "for evaluations and the search, which choose by it"),
                           ("test", "for the final scores; no training sees it")):
        if getattr(data, split) is not None:
            yield Entry(f"data.{split}", getattr(data, split), f"{counted(look.files[split].rows, 'row')}, {purpose}")
        else:
            yield Entry(f"data.{split}", f"data/{split}.jsonl", purpose, off=True)
    longest, cut = max(file.encoded.lengths), sum(length > data.max_length for length in file.encoded.lengths)
    what = "no row is cut" if not cut else f"the ends of {counted(cut, 'row')} are cut"
    yield Entry("data.max_length", data.max_length, f"tokens; the longest row has {longest:,}: {what}")
    if bad := file.rows - file.good:
        yield Entry("data.on_bad_row", data.on_bad_row, f"{bad:,} of {counted(file.rows, 'row')} cannot be used: "
                    f"{file.faults.sentence}")


def _of_versatility(settings: Config) -> Iterator[Entry]:
    suite = settings.versatility
    for split, purpose in (("valid", "general tasks for the search"), ("test", "general tasks for the final scores")):
        if getattr(suite, split) is not None:
            yield Entry(f"versatility.{split}", getattr(suite, split), purpose)


def _whole_job(settings: Config) -> bool:
    """Tell whether all is there that `cofitune run` needs when a region is given."""
    return settings.data.test is not None and settings.versatility.test is not None


# Memory and training --------------------------------------------------------------------------------------------------


def _plan(
    settings: Config, given: dict[str, Any], look: DataLook, memory: Memory
) -> tuple[MemoryPlan, tuple[str, ...]]:
    """Plan the first region and length that fit, and set them in `settings`.

    Raises:
        NothingFits: with the longest rows and the default region.
    """
    rows = look.files["train"].encoded
    settings.plan.rows = len(rows)
    response = max(len(row.input_ids) - row.response_start for row in rows)
    regions = (settings.region,) if "region" in given else REGIONS
    attempts = [(length, region) for length in _lengths(look, settings, given) for region in regions]

    def attempt(length: int, region: str) -> tuple[MemoryPlan, tuple[str, ...]]:
        settings.data.max_length, settings.region = length, region
        settings.plan.response_length = max(1, min(length - 1, response))
        return _with_room_for_the_cache(settings, memory)

    try:
        return attempt(*attempts[0])
    except NothingFits as error:
        try:
            attempt(*attempts[-1])  # where the least does not fit, the others are not worth their time
        except NothingFits:
            raise error from None
    for one in attempts[1:-1]:
        with suppress(NothingFits):
            return attempt(*one)
    return attempt(*attempts[-1])


def _with_room_for_the_cache(settings: Config, memory: Memory) -> tuple[MemoryPlan, tuple[str, ...]]:
    plan, losses = plan_within(settings, memory.size)
    room = min(parse_size(settings.memory.prefix_cache_limit, "memory.prefix_cache_limit"),
               free_bytes(prefix_cache_folder()) or math.inf)
    if plan.settings.prefix == "computed" or plan.cache_per_row * settings.plan.rows <= room:
        return plan, losses
    settings.memory = replace(settings.memory, prefix_cache="off")
    return plan_within(settings, memory.size)


def _of_plan(plan: MemoryPlan, losses: Collection[str], settings: Config, memory: Memory) -> Iterator[Entry]:
    """Yield what the plan chose: what is not a default, and batch and storage in any case."""
    found = keys_of_plan(plan)
    yield Entry(_ROWS, found[_ROWS], f"rows at once; the plan needs {gib(plan.need)} of "
                f"{memory.whose}")
    if found[_STEPS] > 1:
        yield Entry(_STEPS, found[_STEPS], f"so that a step has {found[_ROWS] * found[_STEPS]} rows, as by default")
    if found["training.gradient_checkpointing"]:
        yield Entry("training.gradient_checkpointing", True, "less memory, more time")
    storage = found["storage"]
    why = ("to fit; changes the numbers of the training" if f"storage {storage}" in losses else
           "as given" if settings.storage != "auto" else
           "the model is float32; its optimizer states too" if storage == "fp32" else
           "the model is bfloat16; rounded at random, so that small steps count")
    for key, usual, reason in (
        ("memory.prefix_cache", None, "keeps the output of the layers below the region on disk" if
         found["memory.prefix_cache"] == "auto" else "nothing to cache, or no room for it on the disk"),
        ("memory.prefix_weights", "device", "less memory: the layers below the region leave the device, and take "
         f"{gib(plan.host.get('prefix_weights', 0))} of the host's"),
        ("memory.gradient_release", "off", "less memory: each matrix is updated as soon as its gradient is there"),
        ("memory.optimizer_states", "device", "less memory: kept and updated on the host, where they take "
         f"{gib(plan.host.get('optimizer', 0))}"),
    ):
        if found[key] != usual:
            yield Entry(key, found[key], reason)
    yield Entry("storage", storage, why)


def _of_training(settings: Config, given: dict[str, Any], rows: int, of_plan: dict[str, Entry]) -> Iterator[Entry]:
    if not {"training.num_train_epochs", "training.max_steps"} & {*given}:
        yield Entry("training.num_train_epochs", 1 if rows >= _MANY_ROWS else 2,
                    f"passes over the rows; one will do from {_MANY_ROWS:,} rows on")
    yield from (entry for key, entry in of_plan.items() if key.startswith("training."))
    if settings.data.valid is not None and "training.eval_strategy" not in given:
        yield Entry("training.eval_strategy", "epoch", "shows the loss on data.valid")
    if "training.learning_rate" not in given:
        yield Entry("training.learning_rate", 4e-4, "left out, so that it follows from the region's size", off=True)


def _why_region(region: str, given: dict[str, Any]) -> str:
    if "region" in given:
        return "as given"
    if region == DEFAULT_REGION:
        return "the default; without this line `cofitune run` searches for one"
    return f"smaller than the default, {DEFAULT_REGION}, with which nothing fits"


def _with_given(entries: list[Entry], given: dict[str, Any]) -> list[Entry]:
    """Add the given keys that are not among the entries, each at the end of its section."""
    known = {entry.key for entry in entries if not entry.off}
    for key, value in given.items():
        if key not in known:
            section = key.partition(".")[0]
            places = [place for place, entry in enumerate(entries) if entry.key.partition(".")[0] == section]
            entries.insert(places[-1] + 1 if places else 1, Entry(key, value, "as given"))
    return entries
