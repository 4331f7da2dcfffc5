"""The application behind `cofitune`: it finds the commands and holds the code they share.

Each command is a module of this package with a function of the same name under `@command`. The module's docstring is
the command's line in `cofitune --help`. A module is imported only when its command runs, so that `--help` is fast.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
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
from ..signals import exit_status, stoppable

COMMANDS = ("demo", "data", "run", "search", "train", "evaluate", "merge", "compare", "importance", "analyze", "report",
            "plan", "env")
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with the run's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# Under torchrun only rank 0 prints; the other ranks print nothing but their own errors.
SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
console = Console(stderr=True, quiet=SILENT)


class _Commands(TyperGroup):
    """Command group that imports a command only when it is run."""

    def list_commands(self, context: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: Any, name: str) -> TyperCommand | None:
        """Return a stand-in with the command's help line; `resolve_command` returns the full command."""
        if name not in COMMANDS:
            return None
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        return TyperCommand(name, callback=lambda: None, help=ast.get_docstring(ast.parse(source)))

    def resolve_command(self, context: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if name in COMMANDS:
            _quiet_libraries()
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
    """Turn a function into the command of its module.

    A function with a `context` parameter also accepts configuration keys as options. A CofituneError is printed as one
    line and ends with status 2. Ctrl-C ends with status 130, SIGTERM with 143; `kept.says_what_is_kept` says how to
    resume.
    """
    open_ended = {"allow_extra_args": True, "ignore_unknown_options": True}
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(context_settings=open_ended if "context" in function.__annotations__ else None)(_guarded(function))
    return typer.main.get_command(alone)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with stoppable():
                function(*args, **kwargs)
            _leave_the_others()
        except CofituneError as error:
            _say(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            console.print("\ncofitune: stopped.")
            raise typer.Exit(exit_status(error)) from None

    return run


def _quiet_libraries() -> None:
    """Silence the log output of transformers and bitsandbytes.

    Call this before the command's imports, because some libraries already log while they are imported.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # transformers imports it wherever it is installed


def _leave_the_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..models.sharded import leave

        leave()


def _say(error: CofituneError) -> None:
    from ..models.sharded import rank, world_size

    if SILENT and world_size() == 1:
        return  # the process group is not up yet, so every rank meets this error; rank 0 prints it
    who = f"cofitune, rank {rank()}: " if SILENT else "cofitune: "
    Console(stderr=True).print(f"{who}{error}", style="red", markup=False, highlight=False, soft_wrap=True)


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print a result on standard output, as JSON or by calling `show`."""
    if SILENT:
        return
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(value, ensure_ascii=not unicode))
    else:
        show()
