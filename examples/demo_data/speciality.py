"""Speciality: pharmacy directions in plain English -> sig codes, the Latin shorthand of a prescription.

    "Write the sig code: Take two tablets by mouth twice a day with food for 7 days."  ->  "ii tab po bid cc x7d"

A direction is a `Meaning`: dose, form, route, frequency and, where they make sense, timing with meals, duration and
reason. English has several wordings for each part, the code exactly one. `make_splits` draws distinct meanings, words
each ONCE and cuts the list into train, valid and test: no meaning of one split occurs in another, in whatever words.

A toy for measuring fine-tuning. Never dispense from it.
"""

from __future__ import annotations

import random
from typing import NamedTuple

PROMPT = "Write the sig code: {direction}"
SIZES = {"train": 400, "valid": 80, "test": 160}

DOSES = {
    "ss": ("half a", "one half"),
    "i": ("one", "1"),
    "ii": ("two", "2"),
    "iii": ("three", "3"),
    "iv": ("four", "4"),
}


class Form(NamedTuple):
    """How one dosage form is given."""

    verbs: tuple[str, ...]
    singular: str
    plural: str  # "" for a form that is not counted
    doses: tuple[str, ...]
    routes: tuple[str, ...]
    oral: bool = False


FORMS = {
    "tab": Form(("Take",), "tablet", "tablets", ("ss", "i", "i", "ii", "iii"), ("po", "po", "sl"), oral=True),
    "cap": Form(("Take", "Swallow"), "capsule", "capsules", ("i", "ii", "iii", "iv"), ("po",), oral=True),
    "syr": Form(("Take", "Drink"), "ml of syrup", "", ("5 ml", "10 ml", "15 ml"), ("po",), oral=True),
    "gtt": Form(("Instill", "Put"), "drop", "drops", ("i", "ii", "iii", "iv"), ("od", "os", "ou", "ad", "as", "au")),
    "ung": Form(("Apply", "Rub"), "ointment", "", ("",), ("top", "od", "os", "ou")),
    "supp": Form(("Insert",), "suppository", "suppositories", ("i", "i", "ii"), ("pr", "pv")),
    "puff": Form(("Inhale",), "puff", "puffs", ("i", "ii", "iii"), ("inh",)),
    "spr": Form(("Use",), "spray", "sprays", ("i", "ii"), ("nar",)),
    "patch": Form(("Apply",), "patch", "patches", ("i", "ii"), ("td",)),
    "inj": Form(("Inject",), "ml", "", ("1 ml", "2 ml"), ("sc", "im")),
}
WEIGHTS = {"tab": 7, "cap": 5, "syr": 3, "gtt": 6, "ung": 3, "supp": 2, "puff": 2, "spr": 1, "patch": 1, "inj": 2}

ROUTES = {
    "po": ("by mouth", "orally"),
    "sl": ("under the tongue", "beneath the tongue"),
    "od": ("in the right eye", "into the right eye"),
    "os": ("in the left eye", "into the left eye"),
    "ou": ("in both eyes", "in each eye"),
    "ad": ("in the right ear", "into the right ear"),
    "as": ("in the left ear", "into the left ear"),
    "au": ("in both ears", "in each ear"),
    "top": ("to the skin", "to the affected area"),
    "pr": ("into the rectum", "rectally"),
    "pv": ("into the vagina", "vaginally"),
    "inh": ("", "through the inhaler"),
    "nar": ("in each nostril", "in both nostrils"),
    "td": ("to the skin", "to clean skin"),
    "sc": ("under the skin", "beneath the skin"),
    "im": ("into the muscle", "into a muscle"),
}

FREQUENCIES = {
    "qd": ("once a day", "daily", "one time a day"),
    "bid": ("twice a day", "twice daily", "two times a day"),
    "tid": ("three times a day", "three times daily"),
    "qid": ("four times a day", "four times daily"),
    "qam": ("every morning", "each morning"),
    "qhs": ("at bedtime", "every night at bedtime"),
    "q4h": ("every 4 hours", "every four hours"),
    "q6h": ("every 6 hours", "every six hours"),
    "q8h": ("every 8 hours", "every eight hours"),
    "q12h": ("every 12 hours", "every twelve hours"),
    "qod": ("every other day", "every second day"),
}
DAILY = ("qd", "bid", "tid", "qid", "qam", "qhs", "qod")

TIMINGS = {
    "ac": ("before meals", "before eating"),
    "pc": ("after meals", "after eating"),
    "cc": ("with food", "with meals"),
}

DURATIONS = {
    "x3d": ("for 3 days", "for three days"),
    "x5d": ("for 5 days", "for five days"),
    "x7d": ("for 7 days", "for seven days"),
    "x10d": ("for 10 days", "for ten days"),
    "x2w": ("for 2 weeks", "for two weeks"),
}

ORAL_REASONS = ("pain", "fever", "nausea", "cough", "sleep")
LOCAL_REASONS = {
    "gtt": ("pain", "itch"),
    "ung": ("pain", "itch"),
    "puff": ("wheeze", "cough"),
    "inj": ("pain", "nausea"),
}
PRN = ("as needed for {reason}", "if needed for {reason}", "when needed for {reason}")


class Meaning(NamedTuple):
    """What a direction says; every field holds the code of its part, "" for a part that is left out."""

    dose: str
    form: str
    route: str
    frequency: str
    timing: str = ""
    duration: str = ""
    reason: str = ""


def code(meaning: Meaning) -> str:
    """The sig code: dose, form, route, frequency, timing, duration, then the reason as "prn ..."."""
    parts = [meaning.dose, meaning.form, meaning.route, meaning.frequency, meaning.timing, meaning.duration]
    if meaning.reason:
        parts += ["prn", meaning.reason]
    return " ".join(part for part in parts if part)


def direction(meaning: Meaning, rng: random.Random) -> str:
    """One English wording of a meaning, drawn with `rng`."""
    form = FORMS[meaning.form]
    if meaning.dose in DOSES:
        number = rng.choice(DOSES[meaning.dose])
        noun = form.singular if meaning.dose in ("ss", "i") else form.plural
        what = f"{number} {noun}"
    else:
        what = f"{meaning.dose.removesuffix(' ml')} {form.singular}".strip()
    where = rng.choice(ROUTES[meaning.route])
    when = rng.choice(FREQUENCIES[meaning.frequency])
    tail = []
    if meaning.timing:
        tail.append(rng.choice(TIMINGS[meaning.timing]))
    if meaning.duration:
        tail.append(rng.choice(DURATIONS[meaning.duration]))
    if meaning.reason:
        tail.append(rng.choice(PRN).format(reason=meaning.reason))
    main = " ".join(part for part in (rng.choice(form.verbs), what, where, when) if part)
    if meaning.duration and not meaning.reason and rng.random() < 0.15:
        tail.remove(front := tail[-1])
        main = f"{front[0].upper()}{front[1:]}, {main[0].lower()}{main[1:]}"
    return " ".join([main, *tail]) + "."


def draw(rng: random.Random) -> Meaning:
    """A plausible meaning: meals go with what is swallowed, reasons with what relieves, never both."""
    name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    form = FORMS[name]
    frequency = rng.choice(("qd", "qam", "qod") if name == "patch" else list(FREQUENCIES))
    route = rng.choice(form.routes)
    timing = duration = reason = ""
    reasons = ORAL_REASONS if form.oral else LOCAL_REASONS.get(name, ())
    if route == "po" and frequency in DAILY and frequency != "qhs" and rng.random() < 0.6:
        timing = rng.choice(list(TIMINGS))
    elif reasons and rng.random() < 0.5:
        reason = rng.choice(reasons)
        frequency = "qhs" if reason == "sleep" else frequency
    if not reason and rng.random() < 0.5:
        duration = rng.choice(list(DURATIONS))
    return Meaning(rng.choice(form.doses), name, route, frequency, timing, duration, reason)


def make_meanings(seed: int = 0) -> dict[str, list[Meaning]]:
    """Distinct meanings for each split, in the order of the files."""
    rng = random.Random(f"speciality-{seed}")
    seen: dict[Meaning, None] = {}
    while len(seen) < sum(SIZES.values()):
        seen[draw(rng)] = None
    meanings = iter(seen)
    return {split: [next(meanings) for _ in range(size)] for split, size in SIZES.items()}


def make_splits(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Rows {"prompt", "completion"} for train, valid and test."""
    return {
        split: [
            {
                "prompt": PROMPT.format(direction=direction(meaning, random.Random(f"{seed}-{meaning}"))),
                "completion": code(meaning),
            }
            for meaning in meanings
        ]
        for split, meanings in make_meanings(seed).items()
    }
