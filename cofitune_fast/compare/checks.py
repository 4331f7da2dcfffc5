"""Checks of a comparison's data and methods before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CofituneError
from ..methods.catalogue import NamedMethod
from ..methods.recipe import Recipe
from ..methods.run import SPLITS, general_bench, what_is_trained
from ..models.adapter import require_peft
from ..training import training_arguments
from ..trials import TrialData, TrialSetup, Workbench


def check_tasks(bench: Workbench, tasks: Mapping[str, TrialData]) -> None:
    """Read the data of all tasks.

    Raises:
        CofituneError: a file is unusable; the sentence names the task.
    """
    for name, data in tasks.items():
        try:
            task = bench.with_data(data)
            task.train_rows  # noqa: B018  (reads and checks the rows now)
            for split in SPLITS:
                task.suite(split)
        except CofituneError as error:
            raise CofituneError(f"The task {name}: {error}") from None


def check_method(method: NamedMethod, bench: Workbench, setup: TrialSetup, general: str | None, seed: int) -> None:
    """Check that a method can be trained on this model.

    Raises:
        CofituneError: it cannot; the sentence names the method.
    """
    try:
        _check(method.recipe, bench, setup, general, seed)
    except CofituneError as error:
        raise CofituneError(f"The method {method.name}: {error}") from None


def _check(recipe: Recipe, bench: Workbench, setup: TrialSetup, general: str | None, seed: int) -> None:
    what_is_trained(recipe, bench.layout, seed)
    for rate in recipe.learning_rates:
        training_arguments({**setup.training, **recipe.training, "learning_rate": rate}, "checked")
    if recipe.lora is not None:
        require_peft("LoRA")
    if recipe.mofo and (setup.memory.gradient_release, setup.memory.optimizer_states) != ("off", "device"):
        raise CofituneError("MoFO selects among all momenta after each step, so memory.gradient_release must be off "
                            "and memory.optimizer_states device.")
    if recipe.needs_general:
        general_bench(bench, general).train_rows  # noqa: B018  (reads and checks the rows now)
