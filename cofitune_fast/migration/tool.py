"""A tool's table, and what the tools have in common: LoRA, and full fine-tuning without an anchor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..regions import DEFAULT_REGION
from .draft import Draft, Rule
from .rules import needless

NO_SFT = ("asks for {what}, and what is read here is supervised fine-tuning on prompts and responses; for preferences "
          "and rewards use TRL's trainers with a region.")
LORA = needless("there is no adapter, but a region")
REGION_INSTEAD = ("a region of the weights is trained in place of an adapter, and the anchor, on by default, holds it "
                  "to the base; cofitune search looks for a better region")
NO_ANCHOR = "it has no anchor; take this line out to hold the model to its base (docs/anchor.md)"


class Tool(NamedTuple):
    """A tool whose configurations can be read.

    Attributes:
        table: {its key: our key, or the rule that settles it}.
        prefixes: {beginning of a key: rule}, for keys that are not in the table.
        defaults: {our key: (its key, its default, remark)} where the default differs from ours and changes what comes
            out.
        finish: settles what needs several keys at once: data and region.
        ignored: keys that `finish` refuses or reads without a note.
    """

    name: str
    table: Mapping[str, str | Rule]
    prefixes: Mapping[str, Rule]
    defaults: Mapping[str, tuple[str, Any, str]]
    finish: Callable[[Draft], None]
    ignored: tuple[str, ...] = ()


def lora(draft: Draft, key: str) -> None:
    """Take our default region in place of an adapter, with our own learning rate and the anchor."""
    draft.change(key if draft.source.get(key) else f"no {key}", "region", DEFAULT_REGION, REGION_INSTEAD)
    if "training.learning_rate" in draft.settings:
        draft.withdraw("training.learning_rate", "a rate for adapters does not suit weights; left out, the region's "
                                                 "size sets it (docs/concepts.md)")


def write_default_region(draft: Draft) -> None:
    """Write that all weights are trained, which is the tool's default, and that nothing holds them to the base."""
    draft.default("no adapter", "region", "full", "all weights are trained; a region such as "
                                                  f"{DEFAULT_REGION} forgets less")


def without_anchor(draft: Draft) -> None:
    """Switch the anchor off where the user's run had none, unless a region takes the place of an adapter."""
    draft.default("no anchor", "anchor.weight", 0.0, NO_ANCHOR)
