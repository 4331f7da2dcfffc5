"""The command line's application: finds the commands, and holds what they share.

Each command is a module of this package with a function of the same name under `@command`. The module's docstring is
the command's line in `cofitune --help`. A module is imported when its command is run, so that help comes at once.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import CofituneError

COMMANDS = ("demo", "run", "search", "train", "evaluate", "merge", "compare", "importance", "analyze", "report", "plan",
            "env")
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with the run's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# Of the processes that torchrun starts the first one speaks; the others only say what went wrong with them alone.
SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
console = Console(stderr=True, quiet=SILENT)


class _Commands(TyperGroup):
    """The commands, each imported when it is run."""

    def list_commands(self, context: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: Any, name: str) -> TyperCommand | None:
        """A command with its line of help alone; `resolve_command` has the whole one."""
        if name not in COMMANDS:
            return None
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        return TyperCommand(name, callback=lambda: None, help=ast.get_docstring(ast.parse(source)))

    def resolve_command(self, context: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if name in COMMANDS:
            command = getattr(import_module(f".{name}", __package__), name)
        return name, command, rest


app = typer.Typer(
    name="cofitune", cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Fine-tune the few modules that matter: search them, train them, keep the model's versatility.",
    epilog="Every configuration key can be given as --section.key value, e.g. --training.learning_rate 1e-4.",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def command(function: Callable[..., None]) -> Any:
    """Make a function the command of its module.

    A function with a `context` takes the configuration's keys as options too. A CofituneError becomes one line and
    status 2, Ctrl-C says how to go on, and the libraries' chatter stays off the screen.
    """
    open_ended = {"allow_extra_args": True, "ignore_unknown_options": True}
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(context_settings=open_ended if "context" in function.__annotations__ else None)(_guarded(function))
    return typer.main.get_command(alone)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        import logging

        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # transformers imports it wherever it is installed
        try:
            function(*args, **kwargs)
            _leave_the_others()
        except CofituneError as error:
            _say(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("\ncofitune: stopped. What is finished is kept; the same command goes on from there.")
            raise typer.Exit(130) from None

    return run


def _leave_the_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..models.sharded import leave

        leave()


def _say(error: CofituneError) -> None:
    from ..models.sharded import rank, world_size

    if SILENT and world_size() == 1:
        return  # before the ranks join, each meets the same error
    who = f"cofitune, rank {rank()}: " if SILENT else "cofitune: "
    Console(stderr=True).print(f"{who}{error}", style="red", markup=False, highlight=False, soft_wrap=True)


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print a result on standard output: as JSON, or by `show`."""
    if SILENT:
        return
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        show()
