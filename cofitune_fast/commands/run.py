"""Search a region, train it plainly and protected, contrast with full SFT, check and report."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from ..config import Config, load_config, parse_overrides
from ..display import make_display
from ..errors import CofituneError
from ..models.sharded import started_by_torchrun
from ..report import methods_table, write_report
from .app import AsJson, ConfigFile, command, console, emit, warn
from .kept import says_what_is_kept
from .screen import Screen
from .setup import open_pipeline


@command
def run(
    context: typer.Context,
    config: ConfigFile = None,
    as_json: AsJson = False,
    budget_memory: Annotated[str | None, typer.Option(help="Try only regions that train within such as 24GiB.")] = None,
    budget_time: Annotated[str | None, typer.Option(help="The same for time, as a share of full SFT's.")] = None,
) -> None:
    """Do the whole job on one base: search a region (unless `region` is given), train it plainly ("coarse") and with
    anchor or mask ("fine"), contrast with full SFT (unless `run.full_sft` is false), check the delta, and report.

    The same command again goes on where it stopped. Status 1: a method or a check failed, and the report says why."""
    given = {"search.budget_memory": budget_memory, "search.budget_time": budget_time}
    do_run(load_config(config, {**parse_overrides(context.args),
                                **{key: value for key, value in given.items() if value is not None}}), as_json)


def do_run(settings: Config, as_json: bool) -> None:
    """Run the pipeline of a configuration and show its report.

    Raises:
        CofituneError: what a user can put right.
    """
    if started_by_torchrun():
        raise CofituneError("run trains whole models too and works in one process; under torchrun use search and "
                            "train.")
    display = make_display(console)
    with says_what_is_kept(settings.output), display.running(), open_pipeline(settings, display) as pipeline:
        written = pipeline.output / "report.json"
        try:
            report = pipeline.run(settings.title)
        except BaseException:
            with suppress(CofituneError):  # a page that cannot be drawn must not hide why the run ended
                if written.is_file():
                    write_report(written, pipeline.output)
            raise
        paths = write_report(written, pipeline.output)

    def show() -> None:
        out = Screen()
        out.print(methods_table(report))
        for check in report["checks"]:
            out.print(f"{'✓' if check['passed'] else '✗'} {check['name']}: {check['detail']}")
        for path in (paths["html"], *paths["png"], written):
            out.print(str(path))

    emit(report, as_json, show)
    failed = [row["name"] for row in report["methods"] if row["state"] == "failed"]
    failed += [f"the check '{check['name']}'" for check in report["checks"] if not check["passed"]]
    if failed:
        warn(f"cofitune: failed: {', '.join(failed)}; the report says why.", style="red")
        raise typer.Exit(1)
