"""Drawing with matplotlib without its global state: one style, SVG for the page, PNG files beside it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CofituneError
from ...files import atomic_path
from .palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'cofitune-fast[report]'"
DPI = 180
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so pictures are the same on every machine
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a user's name is no formula
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.facecolor": LIGHT["surface"],
    "axes.facecolor": "none",
    "patch.edgecolor": LIGHT["ink"],
    "svg.fonttype": "none",  # keep text as text: sharp, selectable, in the page's font
    "svg.hashsalt": "cofitune",
}


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CofituneError(f"The report's pictures need matplotlib; install it with: {INSTALL}") from None


@contextmanager
def style() -> Iterator[None]:
    """Apply our matplotlib settings inside the block, for drawing and saving; the caller's settings are untouched."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names may hold characters that DejaVu lacks: the PNG then shows a box, the page the character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of that size in inches, without pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def blank_axes(figure: Figure) -> Axes:
    """Add axes over the whole figure whose data units are inches from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(figure.get_figheight(), 0)
    axes.axis("off")
    return axes


def save_png(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Render the figure as one `<svg>` element with colours as CSS variables, prefixed ids and a view box but no size.

    matplotlib escapes the text in the figure; the caller must escape `description`.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    width = figure.get_figwidth() * 72
    face = f'role="img" aria-label="{description}" style="--natural:{width:.0f}px"'
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', lambda match: match[1] + face, svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg)
    return re.sub("|".join(map(re.escape, LIGHT.values())), lambda match: f"var(--{_NAMES[match[0]]})", svg)


_NAMES = {light: name for name, light in LIGHT.items()}
