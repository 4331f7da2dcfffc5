"""What the section memory refuses when the settings are made by hand; the configuration's own tests read YAML."""

from __future__ import annotations

import pytest

from cofitune_fast.errors import CofituneError
from cofitune_fast.memory import MemorySettings


@pytest.mark.parametrize(("name", "known"), [
    ("prefix_cache", "auto, off"), ("prefix_weights", "device, host"), ("packing", "auto, on, off"),
    ("gradient_release", "off, exact, lagged"), ("optimizer_states", "device, host"),
])
def test_a_value_that_is_no_choice(name, known):
    for value in ("sometimes", False):
        with pytest.raises(CofituneError, match=rf"memory\.{name} is {value!r}; choose one of {known}\."):
            MemorySettings(**{name: value})
    assert [getattr(MemorySettings(**{name: one}), name) for one in known.split(", ")] == known.split(", ")
