"""The JSON artefacts, each described once: the types that its writer returns are those that its reader checks."""

from .reading import checked, read_artefact

__all__ = ["checked", "read_artefact"]
