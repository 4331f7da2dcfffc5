"""Methods of fine-tuning: recipes by name, and one run of a recipe from the base and back."""

from .catalogue import CATALOGUE, NamedMethod, read_methods
from .recipe import Recipe, refuse_unknown
from .run import WORK, run_method

__all__ = ["CATALOGUE", "WORK", "NamedMethod", "Recipe", "read_methods", "refuse_unknown", "run_method"]
