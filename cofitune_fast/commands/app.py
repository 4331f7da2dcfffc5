"""The application behind `cofitune`: it finds the commands and holds the code they share.

Each command is a module of this package with a function of the same name under `@command`. The module's docstring is
the command's line in `cofitune --help`. A module is imported only when its command runs: help is written from its
source (`outline`), and a misspelt key or a wrong value is refused before (`keys.check_early`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import CofituneError
from ..signals import exit_status, stoppable
from .keys import check_early, keys_of, own_options
from .outline import HELP, AsJson, ConfigFile, built, outlined, source, stand_in
from .printing import SILENT, calm, console, emit, errors, quiet_libraries, say, set_loudness, tell, warn
from .screen import to_nowhere

__all__ = ["COMMANDS", "SILENT", "AsJson", "ConfigFile", "app", "command", "console", "emit", "tell", "warn"]

COMMANDS = ("demo", "init", "data", "run", "search", "train", "evaluate", "merge", "export", "push", "compare",
            "importance", "analyze", "report", "plan", "env", "import-config")
_WITHOUT_ARGUMENTS = ("demo", "env")  # other commands need some, and show their help without
_QUIET, _VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")
_UsageError = typer.BadParameter.__base__  # of click, which some releases of typer hold inside


class _Commands(TyperGroup):
    """Command group that imports a command only when it is run."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # the names; `get_command` returns the commands

    def list_commands(self, context: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: Any, name: str) -> TyperCommand | None:
        """Return a stand-in with the command's help line; `resolve_command` returns the full command."""
        return stand_in(name) if name in COMMANDS else None

    def format_commands(self, context: Any, formatter: Any) -> None:
        with formatter.section("Commands"):  # lines too long for the terminal are broken, not cut off
            formatter.write_dl([(name, stand_in(name).help or "") for name in COMMANDS])

    def main(self, *arguments: Any, **options: Any) -> None:
        """Run the command line and end the process; wrong usage is one line and status 2, as every such error."""
        try:
            status = super().main(*arguments, **options, standalone_mode=False)
        except _UsageError as error:
            what, path = error.format_message(), error.ctx.command_path if error.ctx else "cofitune"
            say(CofituneError(f"{what}{'' if what.endswith(('.', '?')) else '.'} `{path} -h` shows what there is."))
            status = 2
        except CofituneError as error:
            say(error)
            status = 2
        except typer.Exit as end:
            status = end.exit_code
        except BrokenPipeError:
            to_nowhere(sys.stdout)
            status = 0
        sys.exit(status if isinstance(status, int) else 0)

    def resolve_command(self, context: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args[0] not in COMMANDS and not context.resilient_parsing:
            near = "".join(f" Did you mean {name!r}?" for name in get_close_matches(args[0], COMMANDS, n=1))
            raise _UsageError(f"No such command {args[0]!r}.{near}", context)
        name, command, rest = super().resolve_command(context, args)
        if name in COMMANDS and not context.resilient_parsing:
            with _one_line_at_most():
                rest = _heard(context, rest)
                asked = context.params["shown"] or {*HELP} & {*rest}
                if asked or (not rest and name not in _WITHOUT_ARGUMENTS):
                    _show_help(outlined(name).make_context(name, [], parent=context, resilient_parsing=True), asked)
                if list(keys_of(name)):
                    check_early(name, rest, own_options(source(name)))
                outlined(name).make_context(name, [*rest], parent=context)  # refuses a wrong option or its value
                quiet_libraries()
                module = name.replace("-", "_")
                with calm():
                    command = getattr(import_module(f".{module}", __package__), module)
        return name, command, rest


app = typer.Typer(
    name="cofitune", cls=_Commands, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Fine-tune the few modules that matter: search them, train them, keep the model's versatility.",
    epilog="Every configuration key can be given as --section.key value, e.g. --training.learning_rate 1e-4; "
           "`cofitune COMMAND --help` lists them.",
)


def _print_version(asked: bool) -> None:
    if asked:
        tell(__version__)
        raise typer.Exit()


@app.callback(invoke_without_command=True, add_help_option=False)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version,
                                          help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option(*_QUIET, help="Print results, warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option(*_VERBOSE, help="Print what libraries say too.")] = False,
    shown: Annotated[bool, typer.Option(*HELP, help="Show this help, or that of a command.")] = False,
) -> None:
    if shown or context.invoked_subcommand is None:
        _show_help(context, asked=shown)


def _show_help(context: Any, asked: Any) -> None:
    """Print a command's help and end: on standard error and with status 2 where nobody asked for it."""
    if asked:
        tell(context.get_help())
    else:
        errors.print(context.get_help(), soft_wrap=True)
    raise typer.Exit(0 if asked else 2)


def _heard(context: Any, arguments: list[str]) -> list[str]:
    """Heed -q and -v, which may stand before or after the command's name, and return the other arguments."""
    quiet = context.params["quiet"] or bool({*_QUIET} & {*arguments})
    verbose = context.params["verbose"] or bool({*_VERBOSE} & {*arguments})
    if quiet and verbose:
        raise CofituneError("-q leaves out what -v adds; give one of them.")
    set_loudness(quiet=quiet, verbose=verbose)
    return [argument for argument in arguments if argument not in (*_QUIET, *_VERBOSE)]


def command(function: Callable[..., None]) -> Any:
    """Turn a function into the command of its module.

    A function with a `context` parameter also accepts configuration keys as options. A CofituneError is printed as one
    line and ends with status 2. Ctrl-C ends with status 130, SIGTERM with 143; `kept.says_what_is_kept` says how to
    resume.
    """
    return built(_guarded(function), function.__name__, "context" in function.__annotations__)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with _one_line_at_most(), calm():
            function(*args, **kwargs)
            _leave_the_others()

    return run


@contextmanager
def _one_line_at_most() -> Iterator[None]:
    """End with one line instead of a traceback on an error that a user can put right, and on Ctrl-C or its like."""
    try:
        with stoppable():
            yield
    except CofituneError as error:
        say(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        after = "\n" if console.is_terminal else ""  # the terminal has written ^C
        warn(f"{after}cofitune: stopped.")
        raise typer.Exit(exit_status(error)) from None


def _leave_the_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..models.sharded import leave

        leave()
