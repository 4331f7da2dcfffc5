"""Types of the JSON artefacts, each defined once: writers return these types, and readers check against them."""

from .reading import checked, read_artefact

__all__ = ["checked", "read_artefact"]
