"""The application behind `cofitune`: it finds the commands and holds the code they share.

Each command is a module of this package with a function of the same name under `@command`. The module's docstring is
the command's line in `cofitune --help`. A module is imported only when its command runs, so that `--help` is fast, and
after `keys.check_early`, so that a misspelt key is refused at once.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import CofituneError
from ..signals import exit_status, stoppable
from .keys import check_early, keys_of, own_options
from .screen import Screen, printable, to_nowhere

COMMANDS = ("demo", "data", "run", "search", "train", "evaluate", "merge", "push", "compare", "importance", "analyze",
            "report", "plan", "env")
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with the run's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# Under torchrun only rank 0 prints; the other ranks print nothing but their own errors.
SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
DEBUG = bool(os.environ.get("COFITUNE_DEBUG"))  # libraries' warnings, logs and progress bars are shown too
HELP = {"help_option_names": ["-h", "--help"]}
_OPEN_ENDED = {"allow_extra_args": True, "ignore_unknown_options": True}
console = Screen(stderr=True, quiet=SILENT)
errors = Screen(stderr=True)  # also of ranks that are silent otherwise


class _Commands(TyperGroup):
    """Command group that imports a command only when it is run."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        self.commands = dict.fromkeys(COMMANDS)  # the names, for suggestions; `get_command` returns the commands

    def list_commands(self, context: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: Any, name: str) -> TyperCommand | None:
        """Return a stand-in with the command's help line; `resolve_command` returns the full command."""
        if name not in COMMANDS:
            return None
        return _StandIn(name, callback=lambda: None, help=ast.get_docstring(ast.parse(_source(name))),
                        context_settings=_OPEN_ENDED)

    def resolve_command(self, context: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if name in COMMANDS and not context.resilient_parsing:
            with _one_line_at_most():
                if list(keys_of(name)) and not {"-h", "--help"} & set(rest):
                    check_early(name, rest, own_options(_source(name)))
                _quiet_libraries()
                with _calm():
                    command = getattr(import_module(f".{name}", __package__), name)
        return name, command, rest


def _source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")


class _Completion(NamedTuple):
    """Suggestion to a shell, with the fields of click's CompletionItem."""

    value: str
    help: str
    type: str = "plain"


class _StandIn(TyperCommand):
    """Command that is not imported: its line in the help, and its options for the shell's completion."""

    def shell_complete(self, context: Any, incomplete: str) -> list[Any]:
        options = {f"--{name}": "" for name in sorted(own_options(_source(self.name))) if len(name) > 1}
        options |= {f"--{name}": key.line for name, key in keys_of(self.name)}
        return [_Completion(name, line) for name, line in options.items() if name.startswith(incomplete or "--")]


class _Command(TyperCommand):
    """Command whose help ends with the configuration keys that it reads."""

    def format_help(self, context: Any, formatter: Any) -> None:
        super().format_help(context, formatter)
        keys = list(keys_of(self.callback.__name__))
        if not keys:
            return
        tell("Keys, on the command line or in the YAML file, with their defaults in brackets:")
        section, width = "", max(len(name) for name, _ in keys)
        for name, key in sorted(keys, key=lambda pair: "." in pair[0]):
            if (first := name.partition(".")[0]) != section and "." in name:
                tell(f"\n{first}")
                section = first
            default = f" [{key.default}]" if key.default not in ("", "{}", "[]") else ""
            tell(f"  --{name:{width}}  {key.line}{default}")
        if section and any(name.startswith("training.") for name, _ in keys):
            tell("\nEvery argument of transformers.TrainingArguments can be given as --training.NAME.")


app = typer.Typer(
    name="cofitune", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP,
    help="Fine-tune the few modules that matter: search them, train them, keep the model's versatility.",
    epilog="Every configuration key can be given as --section.key value, e.g. --training.learning_rate 1e-4; "
           "`cofitune COMMAND --help` lists them.",
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
    resume. Without arguments a command that needs some shows its help.
    """
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(
        cls=_Command, no_args_is_help=function.__name__ not in ("demo", "env"),
        context_settings={**HELP, **(_OPEN_ENDED if "context" in function.__annotations__ else {})},
    )(_guarded(function))
    return typer.main.get_command(alone)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with _one_line_at_most(), _calm():
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
        _say(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as error:
        after = "\n" if console.is_terminal else ""  # the terminal has written ^C
        console.print(f"{after}cofitune: stopped.")
        raise typer.Exit(exit_status(error)) from None


@contextmanager
def _calm() -> Iterator[None]:
    """Show our own warnings and notes as one line each on the console, and no others unless COFITUNE_DEBUG is set."""
    package = str(Path(__file__).resolve().parents[1])
    former = warnings.showwarning

    def show(message: Any, category: type[Warning], filename: str, *place: Any) -> None:
        if str(filename).startswith(package):
            console.print(str(message))
        elif DEBUG:
            former(message, category, filename, *place)

    ours, root = logging.getLogger("cofitune_fast"), logging.getLogger()
    notes, nothing = _Notes(), logging.NullHandler()
    with warnings.catch_warnings():
        warnings.showwarning = show
        ours.addHandler(notes)
        if not DEBUG:
            root.addHandler(nothing)  # a record that no handler takes would go to standard error
        try:
            yield
        finally:
            ours.removeHandler(notes)
            root.removeHandler(nothing)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage())


def _quiet_libraries() -> None:
    """Silence the log output and the progress bars of libraries, unless COFITUNE_DEBUG is set.

    Call this before the command's imports, because some libraries already log while they are imported.
    """
    if DEBUG:
        return
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # transformers imports it wherever it is installed


def _leave_the_others() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..models.sharded import leave

        leave()


def _say(error: CofituneError) -> None:
    """Print an error as one line; of several ranks that met it together only rank 0 prints it."""
    who = "cofitune: "
    if SILENT:
        sharded = sys.modules.get(f"{__package__.rpartition('.')[0]}.models.sharded")
        if sharded is None or sharded.world_size() == 1:
            return  # the process group is not up yet, so every rank meets this error
        who = f"cofitune, rank {sharded.rank()}: "
    errors.print(f"{who}{error}", style="red", soft_wrap=True)


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print a result on standard output, as JSON or by calling `show`, which prints through `tell`."""
    if SILENT:
        return
    if as_json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        tell(json.dumps(value, ensure_ascii=not unicode))
    else:
        show()


def tell(*lines: Any) -> None:
    """Print lines on standard output; what a terminal would obey is written out, see `screen.printable`."""
    try:
        print(*(printable(str(line)) for line in lines), sep="\n", flush=True)
    except BrokenPipeError:
        to_nowhere(sys.stdout)
