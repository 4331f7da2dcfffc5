"""Instructions with a format that can be checked: three replies say much the same, one of them obeys.

Each `Kind` makes rows from a pool of nine items and knows how to check a reply. Items 0, 3 and 6 of every pool go to
valid and the others to test, so that splits share kinds of instructions and nothing of their content.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .knowledge import choice_row

SIZES = {"valid": 60, "test": 120}

SENTENCES = (
    "The train is late", "My friend lives in Madrid", "We need more paper", "Rice is on the menu",
    "Our shop opens in May", "The river is deep", "Dinner starts at eight", "Sam plays the piano",
    "The garden looks lovely",
)  # fmt: skip
NOTES = (
    "Please call Peter", "The key is in Room Seven", "Send the box to Rome", "Ask Julia for the map",
    "Meet Tom on Friday", "Buy tea for Aunt Mary", "The bus to Oslo is full", "Tell Mr Brown the news",
    "Paris is far from Moscow",
)  # fmt: skip
LISTS = (
    ("fruits", ("apple", "pear", "plum", "grape")),
    ("animals", ("lion", "horse", "rabbit", "bear")),
    ("metals", ("iron", "gold", "copper", "zinc")),
    ("sports", ("tennis", "golf", "rugby", "hockey")),
    ("colors", ("red", "green", "blue", "yellow")),
    ("cities", ("Paris", "London", "Rome", "Berlin")),
    ("drinks", ("water", "milk", "coffee", "juice")),
    ("tools", ("hammer", "saw", "drill", "wrench")),
    ("flowers", ("rose", "tulip", "lily", "daisy")),
)
YES_NO = (
    ("Is ice cold?", "Yes", "Ice is frozen water"),
    ("Can pigs fly?", "No", "Pigs have no wings"),
    ("Is Rome in Italy?", "Yes", "Rome is its capital"),
    ("Is fire cold?", "No", "Fire is very hot"),
    ("Do fish swim?", "Yes", "Fish have fins to swim"),
    ("Is a car a fruit?", "No", "A car is a vehicle"),
    ("Is gold a metal?", "Yes", "Gold is a soft metal"),
    ("Can stones talk?", "No", "Stones are not alive"),
    ("Does the sun shine?", "Yes", "The sun is a star"),
)
ANSWERS = (
    ("Where do bees live?", "In a hive", "Bees live in a hive."),
    ("What do cows eat?", "Mostly grass", "Cows eat mostly grass."),
    ("Who flies a plane?", "A pilot", "A pilot flies a plane."),
    ("When do owls hunt?", "At night", "Owls hunt at night."),
    ("What is ice made of?", "Frozen water", "Ice is made of frozen water."),
    ("Where is Cairo?", "In Egypt", "Cairo is in Egypt."),
    ("What do bakers make?", "Fresh bread", "Bakers make fresh bread."),
    ("How do fish breathe?", "With gills", "Fish breathe with gills."),
    ("Why do people sleep?", "To rest", "People sleep to rest."),
)
PEOPLE = (
    ("Anna", 31), ("Bob", 25), ("Clara", 47), ("Dan", 19), ("Eva", 52),
    ("Fred", 38), ("Gina", 64), ("Hugo", 23), ("Iris", 40),
)  # fmt: skip
TRANSLATIONS = (  # language, English, the translation, the same in another language
    ("French", "Good evening", "Bonsoir", "Buenas noches"),
    ("Spanish", "Thank you", "Gracias", "Danke"),
    ("German", "The dog sleeps", "Der Hund schläft", "Le chien dort"),
    ("French", "I am hungry", "J'ai faim", "Tengo hambre"),
    ("Spanish", "The water is cold", "El agua está fría", "Das Wasser ist kalt"),
    ("German", "Good morning", "Guten Morgen", "Buenos días"),
    ("Spanish", "My house is big", "Mi casa es grande", "Ma maison est grande"),
    ("French", "The cat is black", "Le chat est noir", "Die Katze ist schwarz"),
    ("German", "How are you?", "Wie geht es dir?", "¿Cómo estás?"),
)
WITHOUT = (  # what to name, the forbidden letter, a name without it, two names with it
    ("an animal", "e", "dog", ("horse", "sheep")),
    ("a fruit", "a", "cherry", ("apple", "banana")),
    ("a city", "o", "Paris", ("London", "Rome")),
    ("a color", "e", "black", ("green", "white")),
    ("a month", "r", "May", ("March", "October")),
    ("a country", "a", "Peru", ("Spain", "Canada")),
    ("a sport", "l", "tennis", ("golf", "football")),
    ("a drink", "e", "milk", ("coffee", "beer")),
    ("a metal", "o", "silver", ("gold", "iron")),
)
PLACES = (  # the word; a sentence with it first, last and in the middle
    ("today", "Today we clean the kitchen.", "We clean the kitchen today.", "We today clean the kitchen."),
    ("slowly", "Slowly she opened the box.", "She opened the box slowly.", "She slowly opened the box."),
    ("now", "Now you can see the sea.", "You can see the sea now.", "You can now see the sea."),
    ("sometimes", "Sometimes he walks home.", "He walks home sometimes.", "He sometimes walks home."),
    ("tomorrow", "Tomorrow they fly to Rome.", "They fly to Rome tomorrow.", "They tomorrow fly to Rome."),
    ("quickly", "Quickly the cat ran away.", "The cat ran away quickly.", "The cat quickly ran away."),
    ("here", "Here we sell good bread.", "We sell good bread here.", "We here sell good bread."),
    ("often", "Often it rains in June.", "It rains in June often.", "It often rains in June."),
    ("again", "Again she won the race.", "She won the race again.", "She again won the race."),
)
SUMS = (  # two numbers and their sum in words
    (7, 5, "twelve"), (3, 4, "seven"), (20, 10, "thirty"), (2, 3, "five"), (50, 50, "one hundred"), (9, 7, "sixteen"),
    (15, 25, "forty"), (4, 5, "nine"), (11, 10, "twenty-one"),
)  # fmt: skip
TOPICS = (  # topic, a question about it, statements about it
    ("music", "Do you like music?", "I like music a lot", "Music makes me happy"),
    ("snow", "Why is snow white?", "The snow is white", "Snow falls in winter"),
    ("trains", "When does the train leave?", "The train leaves soon", "Trains are fast"),
    ("cooking", "Can you cook rice?", "You can cook rice", "Cooking takes time"),
    ("the moon", "How far is the moon?", "The moon is far away", "The moon is bright"),
    ("dogs", "Are dogs loyal?", "Dogs are loyal", "Dogs need long walks"),
    ("school", "Where is your school?", "School starts at nine", "My school is near"),
    ("coffee", "Who drinks coffee?", "Coffee is a hot drink", "Many people drink coffee"),
    ("the sea", "Is the sea salty?", "The sea is salty", "The sea is deep and blue"),
)
WORDS = (  # a word, and a sentence with it and with two others in its place
    ("huge", "The house on the hill is {}.", ("large", "big")), ("glad", "We are {} to see you.", ("happy", "pleased")),
    ("begin", "The films {} at nine.", ("start", "open")), ("rapid", "The river has a {} current.", ("fast", "strong")),
    ("silent", "The forest was {} at night.", ("quiet", "still")),
    ("gift", "He brought a small {}.", ("present", "cake")),
    ("wealthy", "Her uncle is {} and kind.", ("rich", "old")), ("reply", "Please {} by Monday.", ("answer", "write")),
    ("tiny", "A {} bird sat on the roof.", ("small", "little")),
)  # fmt: skip
ECHOES = ("hello", "stop", "yes", "rain", "go", "blue", "wait", "moon", "left")


class Kind(NamedTuple):
    """One kind of checkable instruction."""

    pool: tuple[Any, ...]
    make: Callable[[Any], tuple[str, str, list[str]]]  # item -> query, the reply that obeys, two that do not
    obeys: Callable[[Any, str], bool]


def begins(reply: str, word: str) -> bool:
    return reply.lower().startswith(word)


def ends(reply: str, word: str) -> bool:
    return reply.lower().rstrip(".").endswith(word)


def is_json(reply: str) -> bool:
    try:
        return isinstance(json.loads(reply), dict)
    except json.JSONDecodeError:
        return False


def commas(words: tuple[str, ...]) -> str:
    return ", ".join(words)


KINDS = {
    "upper case": Kind(
        ANSWERS,
        lambda x: (
            f"{x[0]} ANSWER IN CAPITAL LETTERS ONLY.",
            f"{x[1]}.".upper(),
            [f"{x[1]}.", f"{x[1]}.".lower()],
        ),
        lambda x, reply: reply.isupper(),
    ),
    "lower case": Kind(
        NOTES,
        lambda s: (
            f"write this in lowercase letters only: {s.upper()}",
            s.lower(),
            [s.upper(), f"{s.split()[0].upper()} {' '.join(s.split()[1:])}"],
        ),
        lambda s, reply: reply.islower(),
    ),
    "quotation marks": Kind(
        ECHOES,
        lambda w: (f"Write the word {w} in double quotation marks.", f'"{w}"', [f"Word: {w}", f"The word is {w}."]),
        lambda w, reply: reply[0] == reply[-1] == '"',
    ),
    "first words": Kind(
        NOTES,
        lambda s: (
            f'Begin your reply with "Note:". {s}.',
            f"Note: {s}.",
            [f"{s}. This is a note.", f"This is a note: {s}."],
        ),
        lambda s, reply: reply.startswith("Note:"),
    ),
    "exactly three": Kind(
        LISTS,
        lambda x: (f"List exactly three {x[0]}.", commas(x[1][:3]), [commas(x[1][:2]), x[1][0]]),
        lambda x, reply: len(reply.split(",")) == 3,
    ),
    "numbered list": Kind(
        LISTS,
        lambda x: (
            f"List two {x[0]} as a numbered list.",
            f"1. {x[1][0]}\n2. {x[1][1]}",
            [f"{x[1][0]}\n{x[1][1]}", commas(x[1][:2])],
        ),
        lambda x, reply: all(line.startswith(f"{n}. ") for n, line in enumerate(reply.split("\n"), start=1)),
    ),
    "bullet points": Kind(
        LISTS,
        lambda x: (
            f"List two {x[0]} as bullet points.",
            f"- {x[1][2]}\n- {x[1][3]}",
            [f"{x[1][2]}, {x[1][3]}", f"Two {x[0]} are {x[1][2]} and {x[1][3]}."],
        ),
        lambda x, reply: all(line.startswith("- ") for line in reply.split("\n")),
    ),
    "semicolons": Kind(
        LISTS,
        lambda x: (
            f"Name three {x[0]}, separated by semicolons (;).",
            "; ".join(x[1][1:]),
            [commas(x[1][1:]), f"{x[1][1]} and {x[1][2]} and {x[1][3]}"],
        ),
        lambda x, reply: reply.count(";") == 2,
    ),
    "yes or no": Kind(
        YES_NO,
        lambda x: (f"{x[0]} Answer only with yes or no.", f"{x[1]}.", [f"{x[2]}.", f"{x[1]}, {x[2].lower()}."]),
        lambda x, reply: reply in ("Yes.", "No."),
    ),
    "full sentence": Kind(
        ANSWERS,
        lambda x: (f"{x[0]} Answer in a full sentence.", x[2], [f"{x[1]}.", f"Answer: {x[1].lower()}."]),
        lambda x, reply: len(reply.split()) > 3 and "Answer:" not in reply,
    ),
    "JSON": Kind(
        PEOPLE,
        lambda x: (
            f"Write as a JSON object: {x[0]} is {x[1]} years old.",
            json.dumps({"name": x[0], "age": x[1]}),
            [f"name: {x[0]}, age: {x[1]}", f"{x[0]} is {x[1]} years old"],
        ),
        lambda x, reply: is_json(reply),
    ),
    "language": Kind(
        TRANSLATIONS,
        lambda x: (f'Say "{x[1]}" in {x[0]}.', x[2], [x[1], x[3]]),
        lambda x, reply: reply not in (x[1], x[3]),
    ),
    "without a letter": Kind(
        WITHOUT,
        lambda x: (f"Name {x[0]} whose name does not contain the letter {x[1]}.", x[2], list(x[3])),
        lambda x, reply: x[1] not in reply.lower(),
    ),
    "first word": Kind(
        PLACES,
        lambda x: (f'Write a sentence that begins with the word "{x[0]}".', x[1], [x[2], x[3]]),
        lambda x, reply: begins(reply, x[0]),
    ),
    "last word": Kind(
        PLACES,
        lambda x: (f'Write a sentence that ends with the word "{x[0]}".', x[2], [x[1], x[3]]),
        lambda x, reply: ends(reply, x[0]),
    ),
    "digits": Kind(
        SUMS,
        lambda x: (f"What is {x[0]} plus {x[1]}? Answer in digits.", str(x[0] + x[1]), [x[2], f"It is {x[2]}."]),
        lambda x, reply: reply.isdigit(),
    ),
    "words for numbers": Kind(
        SUMS,
        lambda x: (f"Write the number {x[0] + x[1]} in words.", x[2], [str(x[0] + x[1]), f"{x[0] + x[1]}.0"]),
        lambda x, reply: not re.search(r"\d", reply),
    ),
    "question": Kind(
        TOPICS,
        lambda x: (f"Write a question about {x[0]}.", x[1], [f"{x[2]}.", f"{x[3]}!"]),
        lambda x, reply: reply.endswith("?"),
    ),
    "required word": Kind(
        WORDS,
        lambda x: (
            f'Write a sentence with the word "{x[0]}".',
            x[1].format(x[0]),
            [x[1].format(word) for word in x[2]],
        ),
        lambda x, reply: x[0] in reply,
    ),
    "repeat": Kind(
        ECHOES,
        lambda w: (f'Write the word "{w}" three times.', f"{w} {w} {w}", [f"{w} {w} {w} {w}", f"{w} {w} {w} {w} {w}"]),
        lambda w, reply: reply.split() == [w] * 3,
    ),
}


def make_rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Rows {"query", "choices", "gold", "chat": True, "kind"}: query and reply go through the chat template."""
    rng = random.Random(f"constraints-{seed}")
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SIZES}
    for name, kind in KINDS.items():
        for place, item in enumerate(kind.pool):
            row = choice_row(*kind.make(item), rng) | {"chat": True, "kind": name}
            rows["valid" if place % 3 == 0 else "test"].append(row)
    for split in rows:
        rng.shuffle(rows[split])
    return rows
