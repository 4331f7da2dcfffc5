"""Compare methods x tasks x learning rates x seeds: curves and verdicts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..compare import Comparison, ComparisonSettings
from ..config import Config, DataSection
from ..data.library import is_hub_id, split_of
from ..display import PlainDisplay
from ..errors import CofituneError
from ..files import writable_folder
from ..methods import WORK, read_methods, run_method
from ..methods.run import SPLITS
from ..models.sharded import started_by_torchrun
from ..report import changes_table, comparison_table, write_report
from ..search import Observer
from ..search.executors import InProcess
from ..training import refuse_standing_still
from ..trials import TrialData, Workbench
from ..validation import validated
from .app import AsJson, ConfigFile, command, console, emit, tell
from .kept import fix_date, note_date, says_what_is_kept
from .run import do_run
from .screen import Screen
from .setup import look_before, make_workbench, make_workers, needed, read_config, trial_data, trial_setup


@command
def compare(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs; train none.")] = False,
    so_far: Annotated[bool, typer.Option("--so-far", help="Compare the runs that there are; train none.")] = False,
) -> None:
    """Compare methods on tasks, at the learning rates of a sweep, with several seeds; resumes in the same output
    folder.

    Without compare.methods it does the job of `cofitune run`."""
    settings = read_config(context, config)
    if settings.compare.methods:
        _compare(settings, as_json, dry_run, so_far)
    elif dry_run or so_far:
        raise CofituneError("--dry-run and --so-far are for the runs of compare.methods, and there are none; for a "
                            "search use `cofitune search --dry-run`.")
    else:
        console.print("There are no compare.methods, so this does the job of `cofitune run`; use that command for it.",
                      highlight=False)
        do_run(settings, as_json)


def _compare(settings: Config, as_json: bool, dry_run: bool, so_far: bool) -> None:
    display = PlainDisplay(console)
    def load() -> Workbench:
        display.stage("Looking at the data")
        looks = look_before(settings, ["train", *SPLITS], SPLITS, tasks=comparison_settings(settings).tasks,
                            say=display.note)
        for look in [] if so_far else looks:
            refuse_standing_still(settings.training, len(look.files["train"].encoded))
        display.stage(f"Loading {settings.model.path}")
        elsewhere = settings.compare.executor != "in-process"
        return make_workbench(settings, device="cpu" if elsewhere else None, looks=looks)

    needed(settings, "model")
    with says_what_is_kept(settings.output), display.running(), open_comparison(
        settings, needed(settings, "output"), display, load, dry_run=dry_run,
    ) as comparison:
        if dry_run:
            rows, resolution = comparison.plan(), comparison.resolution()
        else:
            content = comparison.run(make=not so_far)
    if dry_run:
        lines = [plan_table(rows), *(f"{entry['task']}: {entry['sentence']}" for entry in resolution)]
        emit({"runs": rows, "resolution": resolution}, as_json, lambda: tell(*lines))
        return
    paths = write_report(Path(settings.output) / "comparison.json", settings.output)

    def show() -> None:
        out = Screen()
        out.print(comparison_table(content))
        out.print(changes_table(content))
        for entry in content["resolution"]:
            out.print(f"{entry['task']}: {entry['sentence']}")
        for path in (paths["html"], *paths["png"], paths["json"]):
            out.print(str(path))

    emit(content, as_json, show)


def comparison_settings(settings: Config) -> ComparisonSettings:
    """Build the comparison's settings: methods, tasks and seeds.

    Paths are made absolute, because a worker may start in another folder.
    """
    section = settings.compare
    if len(set(section.seeds)) < len(section.seeds):
        raise CofituneError(f"compare.seeds is {section.seeds}; each seed may stand there once.")
    methods = read_methods(section.methods, section.learning_rates, settings.region)
    return ComparisonSettings(
        methods, _tasks(settings), tuple(section.seeds), _absolute(section.general), settings.importance.arguments(),
        settings.title, settings.versatility.drift_rows,
    )


def _tasks(settings: Config) -> dict[str, TrialData]:
    shared, section = trial_data(settings), settings.compare
    if section.tasks:
        found = {name: _task(name, values, shared) for name, values in section.tasks.items()}
    elif settings.data.train is None:
        raise CofituneError("Nothing to compare on: set compare.tasks, or data.train, data.valid and data.test.")
    else:
        found = {"task": shared}
    files = ("train", "valid", "test", "versatility_valid", "versatility_test")
    return {name: replace(data, limit=section.limit if data.limit is None else data.limit,
                          **{key: _absolute(getattr(data, key)) for key in files}) for name, data in found.items()}


def _task(name: str, values: Mapping[str, Any], shared: TrialData) -> TrialData:
    where = f"The task {name} of compare.tasks"
    if not re.fullmatch(r"[\w.-]+", name):
        raise CofituneError(f"{where} has a name that cannot be a file's; use letters, digits, dots and dashes.")
    data = validated(DataSection, values, where[0].lower() + where[1:])
    for part in ("train", "valid", "test"):
        if not getattr(data, part):
            raise CofituneError(f"{where} has no {part} data; name a data file, a folder or a hub id.")
    return replace(shared, **{**data.model_dump(), "date": data.date or shared.date})


@contextmanager
def open_comparison(
    settings: Config, output: str | Path, observer: Observer, workbench: Callable[[], Workbench], *,
    dry_run: bool = False,
) -> Iterator[Comparison]:
    """Open the comparison of a configuration; its workers are stopped when the block ends.

    Args:
        workbench: builds the base; called after the settings were checked.
        dry_run: for `Comparison.plan` only; starts no workers and needs no output folder.
    """
    if started_by_torchrun():
        raise CofituneError("compare trains whole models too and runs in one process; under torchrun use search and "
                            "train.")
    fix_date(settings, output)
    chosen = comparison_settings(settings)
    first = next(iter(chosen.tasks.values()))
    setup = replace(trial_setup(settings, os.path.abspath(output)), data=first, training=settings.training, work=WORK)
    if not dry_run:
        writable_folder(output)
        note_date(settings, output)
    bench = workbench().with_data(first)
    work = lambda job: run_method(bench, setup, job)  # noqa: E731
    executor = InProcess(work) if dry_run else make_workers(settings.compare, setup, work)
    try:
        yield Comparison(bench, setup, chosen, executor, observer)
    finally:
        executor.close()


def plan_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the runs of a comparison, one a line, and the total cost of those that are not done."""
    width = max(len(row["method"]) for row in rows)
    lines = [f"{number:5}  {row['method']:{width}}  {row['task']}  {_setting(row)}  seed {row['seed']}  "
             + ("done" if row["done"] else f"{row['full_sft']:.2f} full SFT") for number, row in enumerate(rows, 1)]
    done, total = sum(row["done"] for row in rows), sum(row["full_sft"] for row in rows)
    there = f", of which {done} are done; the others take" if done else ","
    return "\n".join([*lines, f"{len(rows)} runs{there} about as long as {total:.1f} full SFTs, without the writing of "
                      "anchors' texts"])


def _setting(run: Mapping[str, Any]) -> str:
    return f"{run['learning_rate']:g}" + ("" if run["alpha"] is None else f" alpha {run['alpha']:g}")


def _absolute(path: str | None) -> str | None:
    return path if path is None or is_hub_id(split_of(path)[0]) else os.path.abspath(path)
