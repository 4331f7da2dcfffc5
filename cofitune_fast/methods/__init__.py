"""Methods of fine-tuning: recipes by name, and one run of a recipe, after which the base is restored."""

from .catalogue import CATALOGUE, NamedMethod, read_methods
from .recipe import Recipe
from .run import WORK, run_method

__all__ = ["CATALOGUE", "WORK", "NamedMethod", "Recipe", "read_methods", "run_method"]
