"""Reasoning: handwritten endings (commonsense.py) and templated puzzles whose answer is computed.

A templated puzzle has a key, the numbers or things it is about, sorted where their order does not matter. A key is used
once over both splits, whatever the wording, so no puzzle of valid comes back in test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

from .commonsense import ENDINGS
from .knowledge import choice_row

SIZES = {"valid": 120, "test": 240}
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo")
THINGS = ("apples", "books", "coins", "pencils", "stamps", "eggs", "cards", "balls")

SCALES = {  # from least to most
    "heavier": ("a feather", "an apple", "a brick", "a bicycle", "a piano", "an elephant", "a loaded ship"),
    "bigger": ("an ant", "a mouse", "a cat", "a sheep", "a horse", "a whale"),
    "faster": ("a snail", "a turtle", "a running child", "a horse", "a racing car", "a jet plane"),
    "hotter": ("an ice cube", "a cool lake", "a warm bath", "boiling water", "a candle flame", "the Sun"),
    "longer": ("a second", "a minute", "an hour", "a day", "a week", "a year"),
    "older": ("a baby", "a schoolboy", "a student", "a father", "a grandmother"),
    "more expensive": ("a pencil", "a book", "a bicycle", "a car", "a house", "a castle"),
    "louder": ("a whisper", "a conversation", "a barking dog", "a thunderclap"),
}

CATEGORIES = {
    "fruit": ("apple", "pear", "cherry", "plum", "peach"),
    "vegetable": ("carrot", "onion", "cabbage", "spinach", "turnip"),
    "tool": ("hammer", "saw", "drill", "wrench", "screwdriver"),
    "bird": ("robin", "owl", "crow", "pigeon", "swan"),
    "musical instrument": ("violin", "piano", "flute", "trumpet", "guitar"),
    "piece of furniture": ("table", "chair", "sofa", "wardrobe", "desk"),
    "vehicle": ("car", "bus", "train", "truck", "tram"),
    "sport": ("tennis", "football", "hockey", "rugby", "golf"),
    "piece of clothing": ("shirt", "skirt", "jacket", "sock", "coat"),
    "metal": ("iron", "copper", "silver", "zinc", "nickel"),
}

CYCLES = (
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ("spring", "summer", "autumn", "winter"),
    ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"),
    ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"),
)

NEGATIONS = (
    (("alive", "dead"), "cat"), (("open", "closed"), "door"), (("wet", "dry"), "towel"), (("full", "empty"), "bottle"),
    (("clean", "dirty"), "shirt"), (("hot", "cold"), "soup"), (("asleep", "awake"), "baby"), (("rich", "poor"), "man"),
    (("sick", "healthy"), "boy"), (("late", "on time"), "train"), (("broken", "intact"), "vase"),
    (("old", "new"), "car"), (("guilty", "innocent"), "woman"), (("sweet", "bitter"), "drink"),
    (("safe", "dangerous"), "road"),
)  # fmt: skip

Puzzle = tuple[Hashable, str, str, list[str]]  # key, query, right answer, wrong answers


def near(number: int, rng: random.Random, count: int) -> list[str]:
    """Wrong numbers close to the right one, on either side of it."""
    offsets = [offset for offset in (-3, -2, -1, 1, 2, 3, 10) if number + offset > 0]
    return [str(number + offset) for offset in rng.sample(offsets, count)]


def addition(rng: random.Random) -> Puzzle:
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    query = f"{name} has {a} {thing} and gets {b} more. Now the number of {thing} is"
    return ("addition", min(a, b), max(a, b)), query, str(a + b), near(a + b, rng, 3)


def subtraction(rng: random.Random) -> Puzzle:
    a, b = rng.randint(5, 15), rng.randint(1, 4)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    query = f"{name} had {a} {thing} and gave {b} away. The number of {thing} left is"
    return ("subtraction", a, b), query, str(a - b), near(a - b, rng, 3)


def multiplication(rng: random.Random) -> Puzzle:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    query = f"There are {a} boxes with {b} {rng.choice(THINGS)} each. In total that is"
    return ("multiplication", min(a, b), max(a, b)), query, str(a * b), near(a * b, rng, 3)


def comparison(rng: random.Random) -> Puzzle:
    word = rng.choice(list(SCALES))
    low, high = sorted(rng.sample(range(len(SCALES[word])), 2))
    less, more = SCALES[word][low], SCALES[word][high]
    first, second = rng.sample((less, more), 2)
    return ("comparison", word, low, high), f"Which is {word}, {first} or {second}? The answer is", more, [less]


def ordering(rng: random.Random) -> Puzzle:
    tall, middle, short = rng.sample(NAMES, 3)
    word, top, bottom = rng.choice((("taller", "tallest", "shortest"), ("older", "oldest", "youngest"),
                                    ("richer", "richest", "poorest"), ("faster", "fastest", "slowest")))  # fmt: skip
    facts = [f"{tall} is {word} than {middle}.", f"{middle} is {word} than {short}."]
    rng.shuffle(facts)
    asked, right, wrong = rng.choice(((top, tall, [middle, short]), (bottom, short, [middle, tall])))
    return ("ordering", tall, middle, short, word), f"{' '.join(facts)} The {asked} is", right, wrong


def counting(rng: random.Random) -> Puzzle:
    start, step = rng.randint(1, 12), rng.choice((1, 2, 3, 4, 5, 10, -1, -2))
    start = start + 10 if step < 0 else start
    terms = [start + step * place for place in range(5)]
    wrong = [str(n) for n in rng.sample([n for n in range(terms[4] - 4, terms[4] + 5) if n > 0 and n not in terms], 2)]
    return ("counting", start, step), ", ".join(map(str, terms[:4])) + ",", str(terms[4]), wrong


def cycle(rng: random.Random) -> Puzzle:
    which = rng.randrange(len(CYCLES))
    words = CYCLES[which]
    start = rng.randrange(len(words) - 3)
    shown, right = words[start : start + 3], words[start + 3]
    wrong = rng.sample([word for word in words if word != right], 2)
    return ("cycle", which, start), f"What comes next? {', '.join(shown)},", right, wrong


def negation(rng: random.Random) -> Puzzle:
    (pair, thing) = rng.choice(NEGATIONS)
    said, meant = rng.sample(pair, 2)
    return ("negation", thing, said), f"The {thing} is not {said}. In other words, the {thing} is", meant, [said]


def membership(rng: random.Random) -> Puzzle:
    kind, other, third = rng.sample(list(CATEGORIES), 3)
    member = rng.choice(CATEGORIES[kind])
    query = f"{member.capitalize()} is the name of a"
    return ("membership", member), query, kind, [other, third]


def odd_one_out(rng: random.Random) -> Puzzle:
    kind, other = rng.sample(list(CATEGORIES), 2)
    members, stranger = rng.sample(CATEGORIES[kind], 3), rng.choice(CATEGORIES[other])
    shown = [*members[:2], stranger]
    rng.shuffle(shown)
    query = f"Of {shown[0]}, {shown[1]} and {shown[2]}, the one that does not belong is"
    return ("odd", kind, stranger), query, stranger, members[:2]


TEMPLATES: tuple[tuple[Callable[[random.Random], Puzzle], int], ...] = (  # and how many: a third of them in valid
    (addition, 24), (subtraction, 24), (multiplication, 21), (comparison, 36), (ordering, 24), (counting, 24),
    (cycle, 18), (negation, 24), (membership, 21), (odd_one_out, 24),
)  # fmt: skip


def distinct(make: Callable[[random.Random], Puzzle], count: int, rng: random.Random) -> list[Puzzle]:
    """`count` puzzles with different keys, wrong answers all different from the right one."""
    found: dict[Hashable, Puzzle] = {}
    while len(found) < count:
        puzzle = make(rng)
        found.setdefault(puzzle[0], puzzle)
    return list(found.values())


def make_puzzles(seed: int = 0) -> dict[str, list[Puzzle]]:
    """Puzzles of both splits; a handwritten one has its beginning as its key."""
    rng = random.Random(f"reasoning-{seed}")
    rows: dict[str, list[Puzzle]] = {split: [] for split in SIZES}
    written = [(query, query, right, [wrong]) for query, right, wrong in ENDINGS]
    rng.shuffle(written)
    for puzzles in [written, *(distinct(make, count, rng) for make, count in TEMPLATES)]:
        for place, puzzle in enumerate(puzzles):
            rows["valid" if place % 3 == 0 else "test"].append(puzzle)
    for split, size in SIZES.items():
        rng.shuffle(rows[split])
        rows[split] = rows[split][:size]
    return rows


def make_rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Rows {"query", "choices", "gold"} for valid and test."""
    rng = random.Random(f"reasoning-rows-{seed}")
    return {
        split: [choice_row(query, right, wrong, rng) for _, query, right, wrong in puzzles]
        for split, puzzles in make_puzzles(seed).items()
    }
