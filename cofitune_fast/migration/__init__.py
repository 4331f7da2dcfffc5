"""Configurations of other tools (Axolotl, LLaMA-Factory, ms-swift) turned into ours, with a note on every key."""

from .convert import TOOLS, import_config
from .draft import Draft, Note
from .page import as_yaml

__all__ = ["TOOLS", "Draft", "Note", "as_yaml", "import_config"]
