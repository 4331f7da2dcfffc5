"""A command as its source describes it, without the imports that take seconds: for help and the shell's completion."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from .keys import CHOICES, keys_of

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML file with the run's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
HELP = ("-h", "--help")
OPEN_ENDED = {"help_option_names": list(HELP), "allow_extra_args": True, "ignore_unknown_options": True}
_SCOPE = {"typer": typer, "Annotated": Annotated, "Any": Any, "Path": Path, "ConfigFile": ConfigFile, "AsJson": AsJson}


def source(name: str) -> str:
    """Return the source of a command's module."""
    return Path(__file__).with_name(f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")


class Command(TyperCommand):
    """Command whose help ends with the configuration keys that it reads."""

    def format_help(self, context: Any, formatter: Any) -> None:
        super().format_help(context, formatter)
        keys = list(keys_of(context.info_name))
        if not keys:
            return
        formatter.write("\nKeys, on the command line or in the YAML file, with their defaults in brackets:\n")
        part, width = "", max(len(name) for name, _ in keys)
        for name, key in sorted(keys, key=lambda pair: "." in pair[0]):
            if (first := name.partition(".")[0]) != part and "." in name:
                formatter.write(f"\n{first}\n")
                part = first
            default = f" [{key.default}]" if key.default not in ("", "{}", "[]") else ""
            formatter.write(f"  --{name:{width}}  {key.line}{default}\n")
        if any(name.startswith("training.") for name, _ in keys):
            formatter.write("\nEvery argument of transformers.TrainingArguments can be given as --training.NAME.\n")


class StandIn(TyperCommand):
    """Command that is not imported: its line in the help, and its options for the shell's completion."""

    def shell_complete(self, context: Any, incomplete: str) -> list[Any]:
        """Offer the values of a key that has few, else options; nothing where the shell offers names of files."""
        before = context.args[-1][2:] if context.args and context.args[-1].startswith("--") else ""
        options = {name: parameter for parameter in outlined(self.name).params for name in parameter.opts}
        if before and not getattr(options.get(f"--{before}"), "is_flag", False):
            return [_Completion(value, "") for value in CHOICES.get(before, ()) if value.startswith(incomplete)]
        takes_file = any(parameter.param_type_name == "argument" for parameter in outlined(self.name).params)
        if not incomplete.startswith("-") and (incomplete or takes_file):
            return []
        lines = {"--help": "", **{name: parameter.help or "" for name, parameter in sorted(options.items())},
                 **{f"--{name}": key.line for name, key in keys_of(self.name)}}
        return [_Completion(name, line) for name, line in lines.items() if name.startswith(incomplete or "--")]


class _Completion(NamedTuple):
    """Suggestion to a shell, with the fields of click's CompletionItem."""

    value: str
    help: str
    type: str = "plain"


def stand_in(name: str) -> StandIn:
    return StandIn(name, callback=lambda: None, help=ast.get_docstring(ast.parse(source(name))),
                   context_settings=OPEN_ENDED)


def built(function: Any, name: str, takes_keys: bool) -> TyperCommand:
    """Return the command that calls a function; its options are the function's parameters."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"help_option_names": list(HELP), **(OPEN_ENDED if takes_keys else {})}
    alone.command(name, cls=Command, context_settings=settings)(function)
    return typer.main.get_command(alone)


@cache
def outlined(name: str) -> TyperCommand:
    """Return the command of a module with its options and its help, which does nothing.

    The function under `@command` is taken from the source and its body left out. Its signature may hold literals and
    the names of `_SCOPE`, and no others that only the module's imports explain.
    """
    function = next(node for node in ast.parse(source(name)).body if isinstance(node, ast.FunctionDef)
                    and any(getattr(one, "id", None) == "command" for one in node.decorator_list))
    function.decorator_list, function.body = [], function.body[:1]
    code = ast.fix_missing_locations(ast.Module([function], []))
    scope = dict(_SCOPE)
    exec(compile(code, f"{name}.py", "exec"), scope)
    return built(scope[function.name], name, any(one.arg == "context" for one in function.args.args))
