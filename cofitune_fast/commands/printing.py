"""Printing of commands: results on standard output, everything else on standard error.

`-q` leaves results, warnings and errors; `-v`, or COFITUNE_DEBUG, adds what libraries say.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from .screen import Screen, printable, to_nowhere

# Under torchrun only rank 0 prints; the other ranks print nothing but their own errors.
SILENT = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
VERBOSE = "COFITUNE_DEBUG"  # an environment variable, so that worker processes have it too
console = Screen(stderr=True, quiet=SILENT)
errors = Screen(stderr=True)  # also of ranks that are silent otherwise


def set_loudness(*, quiet: bool, verbose: bool) -> None:
    """Leave out notes and progress on standard error, or show there what libraries say too."""
    console.quiet = SILENT or quiet
    if verbose:
        os.environ[VERBOSE] = "1"


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
    """Print lines on standard output; what a terminal would obey is written out, see `screen.printable`.

    Raises:
        CofituneError: standard output cannot be written. A reader that has gone, as `head` does, is no error.
    """
    try:
        print(*(printable(str(line)) for line in lines), sep="\n", flush=True)
    except BrokenPipeError:
        to_nowhere(sys.stdout)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        to_nowhere(sys.stdout)
        raise CofituneError(f"The result cannot be written to standard output: {error.strerror}.") from None


def warn(text: str, style: str | None = None) -> None:
    """Print a line on standard error that -q does not leave out."""
    if not SILENT:
        errors.print(text, style=style, soft_wrap=True)


def say(error: CofituneError) -> None:
    """Print an error as one line; of several ranks that met it together only rank 0 prints it."""
    who = "cofitune: "
    if SILENT:
        sharded = sys.modules.get(f"{__package__.rpartition('.')[0]}.models.sharded")
        if sharded is None or sharded.world_size() == 1:
            return  # the process group is not up yet, so every rank meets this error
        who = f"cofitune, rank {sharded.rank()}: "
    errors.print(f"{who}{error}", style="red", soft_wrap=True)


@contextmanager
def calm() -> Iterator[None]:
    """Show our own warnings and notes as one line each, and no others unless libraries are to be heard."""
    package = str(Path(__file__).resolve().parents[1])
    former = warnings.showwarning

    def show(message: Any, category: type[Warning], filename: str, *place: Any) -> None:
        if str(filename).startswith(package):
            warn(str(message))
        elif os.environ.get(VERBOSE):
            former(message, category, filename, *place)

    ours, root = logging.getLogger("cofitune_fast"), logging.getLogger()
    notes, nothing = _Notes(), logging.NullHandler()
    with warnings.catch_warnings():
        warnings.showwarning = show
        ours.addHandler(notes)
        if not os.environ.get(VERBOSE):
            root.addHandler(nothing)  # a record that no handler takes would go to standard error
        try:
            yield
        finally:
            ours.removeHandler(notes)
            root.removeHandler(nothing)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else console.print)(record.getMessage())


def quiet_libraries() -> None:
    """Silence the log output and the progress bars of libraries, unless they are to be heard.

    Call this before the command's imports, because some libraries already log while they are imported.
    """
    if os.environ.get(VERBOSE):
        return
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # transformers imports it wherever it is installed
