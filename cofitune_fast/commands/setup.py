"""Factories that turn a configuration into a workbench, a search, a pipeline and an executor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ..config import Config, WorkersSection, load_config, parse_overrides
from ..data.chat import PLAIN_FORMAT
from ..data.encode import RowsCut
from ..errors import CofituneError
from ..files import writable_folder
from ..importance import Importance
from ..memory.settings import parse_size
from ..models import load_model
from ..models.loading import checked_device, load_outline
from ..models.sharded import started_by_torchrun
from ..pipeline import Pipeline, PipelineSettings
from ..regions import Region
from ..scoring import DRIFT_ROWS
from ..search import Budget, Limits, Observer, Search, SearchSettings, named_strategy, space_levels
from ..search.executors import Executor, InProcess
from ..training import check_arguments, evaluates, refuse_standing_still
from ..trials import DataLook, TrialData, TrialSetup, Workbench, read_data, run_job
from .app import SILENT, console
from .kept import fix_date, note_date

FULL_SFT = 1.0  # longest training of the default space, as a share of full fine-tuning's; other spaces are tried whole


def read_config(context: typer.Context, file: Path | None) -> Config:
    """Read the configuration of a command: the YAML file, if given, overridden by the command line's keys."""
    return load_config(file and file.expanduser(), parse_overrides(context.args))


def needed(settings: Config, key: str) -> Any:
    """Return the value of a key that the command requires.

    Raises:
        CofituneError: the key is not set.
    """
    value = getattr(settings, key)
    if value is None or value == "":
        raise CofituneError(f"This command needs {key}: give --{key} VALUE or set it in the YAML.")
    return value


def look_before(
    settings: Config, parts: Sequence[str], suites: Sequence[str] = (), *, tasks: Mapping[str, TrialData] | None = None,
    evaluated: bool = False, say: Callable[[str], None] = console.print,
) -> list[DataLook]:
    """Check everything that needs no weights: files, then the tokenizer, rows as tokens, positions and the embedding.

    Args:
        parts: files that will be used, of train, valid and test.
        suites: parts that are scored with the versatility tasks.
        tasks: data of several tasks, by name; by default the one of `data`.
        evaluated: training evaluates on the valid rows.
        say: receives one line per file and per thing to know.

    Returns:
        A look at each task's data, with the encoded rows, for `make_workbench`.

    Raises:
        CofituneError: a file, or a row in it, cannot be used; of several tasks the sentence names the one.
    """
    section = needed(settings, "model")
    if section.device is not None:
        checked_device(section.device)
    looks = {}
    for name, data in (tasks or {"": trial_data(settings)}).items():
        with _named(name if tasks else ""):
            looks[name] = read_data(data, parts, suites)
            looks[name].require()
            for split in suites:
                if getattr(data, f"versatility_{split}") is None:
                    data.suite(split)  # raises, saying what is not set
    outline = load_outline(section.path, gguf_file=section.gguf_file, dtype=section.dtype, device=section.device)
    for name, look in looks.items():
        with _named(name if tasks else ""):
            look.encode(outline, evaluated=evaluated)
            look.require()
        for line in look.sentences:
            say(line)
    warnings.simplefilter("ignore", RowsCut)  # the lines above say it
    return list(looks.values())


@contextmanager
def _named(task: str) -> Iterator[None]:
    try:
        yield
    except CofituneError as error:
        raise CofituneError(f"The task {task}: {error}") if task else error from None


def check_files(settings: Config) -> None:
    """Read the files beside the rows: those of the anchor, and a measured importance.

    Raises:
        CofituneError: one is missing or cannot be used.
    """
    anchor = settings.anchor
    if anchor.weight > 0 and anchor.source == "rows":
        anchor.read_rows()
    elif anchor.weight > 0 and anchor.source == "answers" and anchor.prompts != "task":
        anchor.read_prompts()
    if settings.importance.file:
        Importance.load(settings.importance.file)


def make_workbench(
    settings: Config, region: str | None = None, device: str | None = None, looks: Sequence[DataLook] = ()
) -> Workbench:
    """Load the base of a run; says so if its tokenizer has no chat template.

    Args:
        region: kept in full precision when model.quantize is set; defaults to the run's region, if any.
        device: overrides model.device.
        looks: what `look_before` returned; its tokenizer, rows and tasks are not read for a second time.
    """
    section, region = needed(settings, "model"), region or settings.region
    loaded = load_model(section.path, dtype=section.dtype, device=device or section.device, gguf_file=section.gguf_file,
                        attn_implementation=section.attn_implementation, quantize=section.quantize,
                        keep=Region.parse(region).modules if region else (), roles=section.roles,
                        tokenizer=looks[0].outline.tokenizer if looks else None)
    if not loaded.tokenizer.chat_template:
        console.print(PLAIN_FORMAT)
    bench = Workbench(loaded, trial_data(settings))
    for look in looks:
        look.hand_over(bench)
    return bench


def trial_data(settings: Config) -> TrialData:
    data, versatility = settings.data, settings.versatility
    return TrialData(
        data.train, data.valid, data.test, versatility.valid, versatility.test, data.max_length, data.limit,
        versatility.limit, data.metric, versatility.generate, data.on_bad_row, data.thinking, data.date,
    )


def trial_setup(settings: Config, output: str | Path) -> TrialSetup:
    """Build the setup that workers need to train nodes; search.training overrides training.

    Raises:
        CofituneError: a training argument cannot be honoured. This is checked before anything is loaded.
    """
    for section in (settings.training, settings.search.training, settings.run.full_sft_training):
        check_arguments({**settings.training, **section})
    check_files(settings)
    if settings.model.quantize != "none":
        raise CofituneError("search and compare train one region after another, so the model cannot be quantised "
                            "around one of them: leave model.quantize out, or use `cofitune train`.")
    model = {key: value for key, value in settings.model.model_dump().items() if key != "quantize"}
    return TrialSetup(
        model, trial_data(settings), {**settings.training, **settings.search.training}, str(output), settings.storage,
        settings.memory, settings.search.checkpoint_minutes, settings.loss, settings.anchor,
        min(settings.versatility.drift_rows, DRIFT_ROWS),
    )


def search_settings(settings: Config) -> SearchSettings:
    section = settings.search
    return SearchSettings(
        levels=space_levels(section.space),
        space=section.space if isinstance(section.space, str) else "own",
        strategy=named_strategy(section.strategy, rungs=tuple(section.rungs) if section.rungs else None,
                                beam=section.beam, keep=section.keep, early=section.early,
                                confidence=section.confidence),
        learning_rate=section.learning_rate,
        rate_factors=section.rate_factors,
        prior=section.prior,
        prior_keep=section.prior_keep,
        budget=Budget.parse(section.budget) if section.budget is not None else None,
        limits=Limits(
            parse_size(section.budget_memory, "search.budget_memory") if section.budget_memory is not None else None,
            section.budget_time or (FULL_SFT if section.space == SearchSettings.space else None),
            asked=section.budget_time is not None,
        ),
        final_training=settings.training,
        full_training={**settings.training, **settings.run.full_sft_training},
    )


def make_executor(settings: Config, bench: Workbench, setup: TrialSetup) -> Executor:
    """Build the executor that runs the nodes of a search."""
    section = settings.search
    if section.ray_address is not None and section.executor != "ray":
        raise CofituneError("search.ray_address is given, but search.executor is not ray; set --search.executor ray.")
    if started_by_torchrun():
        if section.executor != "in-process" or section.prior != "none":
            raise CofituneError("Under torchrun all ranks hold one model together: leave search.executor and "
                                "search.prior out.")
        from ..search.executors.ranks import Ranks

        return Ranks(lambda job: run_job(bench, setup, job))
    return make_workers(section, setup, lambda job: run_job(bench, setup, job))


def make_workers(
    section: WorkersSection, setup: TrialSetup, work: Callable[[dict[str, Any]], dict[str, Any]]
) -> Executor:
    """Build the executor that a configuration section names.

    Args:
        work: does a job in this process; used by the in-process executor only.
    """
    if section.executor == "processes":
        from ..search.executors.processes import Processes

        return Processes(setup, section.workers)
    if section.executor == "ray":
        from ..search.executors.ray_cluster import RayCluster

        return RayCluster(setup, section.ray_address, workers=section.workers)
    return InProcess(work)


def make_search(settings: Config, bench: Workbench, output: str | Path) -> Search:
    """Build the search of a configuration; the caller closes its executor."""
    setup, chosen = trial_setup(settings, output), search_settings(settings)
    prior = None
    if chosen.prior != "none":
        from ..trials.priors import make_prior

        prior = make_prior(chosen.prior, bench)
    return Search(bench, setup, chosen, make_executor(settings, bench, setup), prior=prior,
                  memory_need=make_memory_need(settings))


def make_memory_need(settings: Config) -> Callable[[Region], int] | None:
    """Return a function that predicts the peak bytes of training a region, where memory is limited, else None."""
    if settings.search.budget_memory is None:
        return None
    from .planned import memory_needs

    return memory_needs(settings)


@contextmanager
def open_pipeline(settings: Config, display: Observer, *, search_alone: bool = False) -> Iterator[Pipeline | None]:
    """Open the pipeline of a configuration; its workers are stopped when the block ends.

    It has a search unless the configuration names a region. Under torchrun only rank 0 receives the pipeline. The other
    ranks run the same jobs until rank 0 is done, and then receive None.
    """
    output, model = needed(settings, "output"), needed(settings, "model")
    fix_date(settings, output)
    setup = trial_setup(settings, output)  # refuses wrong settings before a folder is made or the model is loaded
    if not settings.region:
        search_settings(settings)
    splits = (["valid"] if settings.region is None else []) + ([] if search_alone else ["test"])
    display.stage("Looking at the data")
    looks = look_before(settings, ["train", *splits], splits, say=display.note, evaluated=evaluates(setup.training))
    rungs = [] if settings.region else [(setup.training, search_settings(settings).strategy.rungs[0])]
    for training, fraction in [*rungs, *([] if search_alone else [(settings.training, 1.0)])]:
        refuse_standing_still(training, len(looks[0].files["train"].encoded), fraction)
    writable_folder(output)
    note_date(settings, output)
    display.stage(f"Loading {model.path}")
    # With workers elsewhere this process needs only the model's names and sizes, so it leaves the GPUs to them.
    elsewhere = search_alone and settings.search.executor != "in-process"
    bench = make_workbench(settings, device="cpu" if elsewhere else None, looks=looks)
    if SILENT:
        from ..search.executors.ranks import follow

        follow(lambda job: run_job(bench, setup, job))
        yield None
        return
    search = None if settings.region else make_search(settings, bench, output)
    try:
        yield Pipeline(bench, replace(setup, training=settings.training), PipelineSettings(
            region=settings.region, full_sft=settings.run.full_sft, full_sft_training=settings.run.full_sft_training,
            importance=settings.importance.arguments(), importance_file=settings.importance.file,
            preset=settings.mask.preset, mask_mode=settings.mask.mode,
        ), display, search)
    finally:
        if search is not None:
            search.executor.close()
