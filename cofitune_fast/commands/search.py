"""Search the region that promises most on the validation part."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..config import Config, load_config, parse_overrides
from ..display import make_display, scores_text, show_space, shown_progress
from ..search import Search, node_rate, search_work
from ..search.preview import preview
from ..search.work import final_work
from ..training import Schedule
from ..trials import Workbench
from .app import AsJson, ConfigFile, command, console, emit, tell
from .kept import says_what_is_kept
from .screen import Screen
from .setup import look_before, make_memory_need, make_workbench, open_pipeline, search_settings, trial_setup


@command
def search(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the space, sizes and costs; train nothing.")] = False,
    budget: Annotated[str | None, typer.Option(help="End after such as '2 full-sft', '1.5h', '3M tokens'.")] = None,
    budget_memory: Annotated[str | None, typer.Option(help="Try only regions that train within such as 24GiB.")] = None,
    budget_time: Annotated[str | None, typer.Option(help="The same for time, as a share of full SFT's.")] = None,
    executor: Annotated[str | None, typer.Option(help="in-process, processes (one per GPU) or ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster: auto, or host:port.")] = None,
) -> None:
    """Search the region that promises most on the validation part; resumes in the same output folder.

    With --json every event is a line of JSON on standard output, and the last line the result."""
    given = {"budget": budget, "budget_memory": budget_memory, "budget_time": budget_time, "executor": executor,
             "ray_address": ray_address}
    settings = load_config(config, {**parse_overrides(context.args),
                                    **{f"search.{key}": value for key, value in given.items() if value is not None}})
    settings.region = None
    if dry_run:
        search_settings(settings)  # refuses what cannot be, before the model is loaded
        data, versatility = settings.data, settings.versatility
        counted = bool(data.train and data.valid and versatility.valid)  # the costs need all three
        with shown_progress(console):
            looks = look_before(settings, ["train", "valid"], ["valid"]) if counted else []
            content = preview_search(settings, make_workbench(settings, looks=looks))

        def table() -> None:
            Screen().print(show_space(content["nodes"], content["totals"]))
            for note in content["notes"]:
                tell(f"Left out: {note}")

        emit(content, as_json, table)
        return
    display = make_display(console, as_json)
    with (says_what_is_kept(settings.output), display.running(),
          open_pipeline(settings, display, search_alone=True) as pipeline):
        if pipeline is None:
            return  # a rank other than 0, which has followed rank 0 to the end
        result = pipeline.search(settings.title)

    def show() -> None:
        tell(f"{result.chosen.region}  {scores_text(result.chosen.scores)}\n{result.choice.sentence}")
        tell(f"The tree, the pictures and all nodes: cofitune report {pipeline.output}")

    emit(result.to_dict(), as_json, show)


def preview_search(settings: Config, bench: Workbench) -> dict[str, Any]:
    """List the nodes and costs of a search before it runs; costs need data.train, data.valid and versatility.valid."""
    setup, chosen = trial_setup(settings, "preview"), search_settings(settings)
    there = settings.data.train and settings.data.valid and settings.versatility.valid
    work = search_work(bench, setup, chosen.full_training) if there else None
    base_rate = Schedule.of(setup.training, bench.model, 1).learning_rate
    reference = Search.reference_size(bench)

    def count(candidate: Any) -> int:
        return candidate.region.count(bench.model)

    def rate(candidate: Any) -> float:
        return base_rate if chosen.learning_rate == "fixed" else node_rate(base_rate, count(candidate), reference)

    return preview(chosen.levels, chosen.strategy, bench.layout, bench.total_parameters, count, rate, work,
                   chosen.limits, make_memory_need(settings),
                   final_work(bench, work, chosen.final_training) if work else None)
