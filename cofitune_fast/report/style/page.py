"""Page frame shared by all pages: templates with their filters, the style sheet, dates and the machine."""

from __future__ import annotations

from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from ...errors import CofituneError
from .canvas import INSTALL
from .numbers import byte_size, count, duration, finite, percent, score
from .palette import css_variables

if TYPE_CHECKING:
    from jinja2 import Template

_REPORT = __package__.rpartition(".")[0]  # template names are paths in its folder


def page_template(name: str) -> Template:
    """Load a page's template, with the filters that all pages share.

    Raises:
        CofituneError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise CofituneError(f"The report's page needs jinja2; install it with: {INSTALL}") from None
    loader = FunctionLoader(_own_file)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "percent": percent, "count": count, "score": score}
    return environment.get_template(name)


def style_variables() -> dict[str, str]:
    """Return the style sheet and the colours of the light and the dark scheme, for the head of every page."""
    light, dark = css_variables()
    return {"css": _own_file("style/style.css"), "light": light, "dark": dark}


def _own_file(name: str) -> str:
    return resources.files(_REPORT).joinpath(name).read_text(encoding="utf-8")


def readable_date(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    clock = f", {moment:%H:%M}" if "T" in text or ":" in text else ""
    zone = f" {moment.tzname()}" if clock and moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y}{clock}{zone}"


def environment_facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """List the machine and its versions as (name, text) pairs."""
    return [
        (key.removesuffix("_bytes").replace("_", " "), byte_size(value))
        if key.endswith("_bytes") and finite(value)
        else (key.replace("_", " "), "none" if value is None else str(value))
        for key, value in environment.items()
    ]
