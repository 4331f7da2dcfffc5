"""Knowledge: facts as tables, turned into choices among answers of the same table.

Each `Table` has a completion-style question and its facts, subject -> answer. A fact goes to one split only: the facts
of a table are shuffled with a fixed seed and dealt out one third to valid, two thirds to test.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

SIZES = {"valid": 120, "test": 240}
CHOICES = 4


class Table(NamedTuple):
    """A question with one blank and the facts that fill it."""

    name: str
    query: str  # "{}" stands for the subject
    facts: dict[str, tuple[str, ...]]  # subject -> the answer, then its own wrong answers, if any


def pairs(text: str) -> dict[str, tuple[str, ...]]:
    """Read "subject: answer" or "subject: answer, wrong, wrong, wrong" pairs separated by semicolons."""
    facts = {}
    for pair in text.replace("\n", " ").split(";"):
        if pair.strip():
            subject, answer = pair.split(":")
            facts[subject.strip()] = tuple(part.strip() for part in answer.split(","))
    return facts


TABLES = (
    Table("capital", "The capital of {} is", pairs("""
        France: Paris; Italy: Rome; Greece: Athens; Poland: Warsaw; Norway: Oslo; Denmark: Copenhagen; Egypt: Cairo;
        Peru: Lima; Kenya: Nairobi; Cuba: Havana; Iraq: Baghdad; Thailand: Bangkok; Nepal: Kathmandu;
        Ethiopia: Addis Ababa; Australia: Canberra, Sydney, Melbourne, Perth;
        Canada: Ottawa, Toronto, Montreal, Vancouver; Turkey: Ankara, Istanbul, Izmir, Antalya;
        Brazil: Brasilia, Rio de Janeiro, Sao Paulo, Salvador; Germany: Berlin, Munich, Hamburg, Frankfurt;
        Spain: Madrid, Barcelona, Seville, Valencia; Switzerland: Bern, Zurich, Geneva, Basel;
        India: New Delhi, Mumbai, Kolkata, Chennai; China: Beijing, Shanghai, Hong Kong, Guangzhou;
        Japan: Tokyo, Osaka, Kyoto, Nagoya; Vietnam: Hanoi, Saigon, Hue, Da Nang;
        Pakistan: Islamabad, Karachi, Lahore, Peshawar; Morocco: Rabat, Casablanca, Marrakesh, Fez;
        Nigeria: Abuja, Lagos, Kano, Ibadan; New Zealand: Wellington, Auckland, Christchurch, Hamilton;
        Scotland: Edinburgh, Glasgow, Aberdeen, Dundee; Russia: Moscow, Saint Petersburg, Kazan, Omsk;
        Ukraine: Kyiv, Odesa, Lviv, Kharkiv; Colombia: Bogota, Medellin, Cali, Cartagena;
        Ecuador: Quito, Guayaquil, Cuenca, Manta
    """)),
    Table("symbol", "The chemical symbol of {} is", pairs("""
        sodium: Na, So, Sd, Sm; potassium: K, P, Po, Pt; iron: Fe, Ir, In, I; gold: Au, Go, Gd, Ga;
        silver: Ag, Si, Sv, Al; copper: Cu, Co, Cp, Cr; tin: Sn, Ti, Tn, T; lead: Pb, Le, Ld, L;
        mercury: Hg, Me, Mc, Mg; tungsten: W, Tu, Tg, T; helium: He, H, Hl, Hm; carbon: C, Ca, Cb, Cr;
        calcium: Ca, C, Cl, Cm; chlorine: Cl, C, Ch, Cr; zinc: Zn, Z, Zi, Zc; magnesium: Mg, Mn, Ma, M;
        nitrogen: N, Ni, Na, Ng; phosphorus: P, Ph, Po, K; silicon: Si, S, Sl, Sc; sulfur: S, Su, Sf, Si;
        neon: Ne, N, No, Nn
    """)),
    Table("continent", "{} is a country in", pairs("""
        Egypt: Africa; Kenya: Africa; Ghana: Africa; Morocco: Africa; Senegal: Africa; Zambia: Africa; France: Europe;
        Sweden: Europe; Belgium: Europe; Hungary: Europe; Croatia: Europe; Estonia: Europe; Japan: Asia; India: Asia;
        Thailand: Asia; Nepal: Asia; Vietnam: Asia; Mongolia: Asia; Brazil: South America; Peru: South America;
        Chile: South America; Bolivia: South America; Ecuador: South America; Canada: North America;
        Mexico: North America; Guatemala: North America; Honduras: North America
    """)),
    Table("language", "Most people in {} speak", pairs("""
        France: French; Germany: German; Brazil: Portuguese; Mexico: Spanish; Japan: Japanese; China: Chinese;
        Russia: Russian; Egypt: Arabic; Iran: Persian; Israel: Hebrew; Poland: Polish; Turkey: Turkish; Greece: Greek;
        Sweden: Swedish; Finland: Finnish; Denmark: Danish; Hungary: Hungarian; Thailand: Thai; Vietnam: Vietnamese;
        Australia: English; Italy: Italian; Austria: German; Argentina: Spanish; Iraq: Arabic
    """)),
    Table("currency", "The currency used in {} is the", pairs("""
        Japan: yen; China: yuan; India: rupee; Russia: ruble; the United Kingdom: pound; Mexico: peso; Brazil: real;
        Switzerland: franc; South Korea: won; Thailand: baht; Germany: euro; Canada: dollar; Poland: zloty;
        Israel: shekel; Sweden: krona; South Africa: rand
    """)),
    Table("young", "A young {} is called a", pairs("""
        dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; bear: cub; deer: fawn; duck: duckling;
        swan: cygnet; goose: gosling; pig: piglet; kangaroo: joey; frog: tadpole; chicken: chick; lion: cub
    """)),
    Table("class", "In biology, a {} is classified as", pairs("""
        frog: an amphibian; toad: an amphibian; salamander: an amphibian; newt: an amphibian; snake: a reptile;
        lizard: a reptile; crocodile: a reptile; turtle: a reptile; eagle: a bird; penguin: a bird; sparrow: a bird;
        parrot: a bird; whale: a mammal; bat: a mammal; dolphin: a mammal; horse: a mammal; shark: a fish;
        salmon: a fish; trout: a fish; beetle: an insect; butterfly: an insect; mosquito: an insect
    """)),
    Table("home", "A {} usually lives in a", pairs("""
        bee: hive; bird: nest; bat: cave; spider: web; horse: stable; rabbit: burrow; dog: kennel; fish: pond; pig: sty;
        camel: desert; monkey: jungle
    """)),
    Table("author", "The author of {} was", pairs("""
        Hamlet: William Shakespeare; Oliver Twist: Charles Dickens; War and Peace: Leo Tolstoy; The Odyssey: Homer;
        Pride and Prejudice: Jane Austen; Frankenstein: Mary Shelley; Don Quixote: Miguel de Cervantes;
        Faust: Johann Wolfgang von Goethe; Les Miserables: Victor Hugo; Moby-Dick: Herman Melville;
        Crime and Punishment: Fyodor Dostoevsky; The Raven: Edgar Allan Poe; Animal Farm: George Orwell;
        The Adventures of Tom Sawyer: Mark Twain; Dracula: Bram Stoker; Treasure Island: Robert Louis Stevenson
    """)),
    Table("discovery", "The scientist best known for {} is", pairs("""
        the theory of relativity: Albert Einstein; the law of gravity: Isaac Newton; evolution: Charles Darwin;
        discovering radium: Marie Curie; discovering penicillin: Alexander Fleming;
        the telephone: Alexander Graham Bell; the light bulb: Thomas Edison; the periodic table: Dmitri Mendeleev;
        the printing press: Johannes Gutenberg; the steam engine: James Watt; pasteurization: Louis Pasteur;
        inventing dynamite: Alfred Nobel; the laws of planetary motion: Johannes Kepler;
        the first smallpox vaccine: Edward Jenner
    """)),
    Table("planet", "In our solar system, the planet {} is", pairs("""
        closest to the Sun: Mercury; with the Great Red Spot: Jupiter; known for its bright rings: Saturn;
        we live on: Earth; known as the Red Planet: Mars; farthest from the Sun: Neptune; that is hottest: Venus;
        that spins on its side: Uranus
    """)),
    Table("organ", "The part of the body used to {} is the", pairs("""
        think: brain; see: eye; hear: ear; smell: nose; taste: tongue; pump blood: heart; breathe: lung;
        digest food: stomach; filter blood and make urine: kidney; make bile: liver; chew: tooth; bend the leg: knee;
        bend the arm: elbow; hold the skin and muscles up: skeleton
    """)),
    Table("past", "The past tense of \"{}\" is", pairs("""
        go: went; eat: ate; see: saw; take: took; write: wrote; run: ran; swim: swam; fly: flew; buy: bought;
        teach: taught; think: thought; drink: drank; sing: sang; break: broke; give: gave; know: knew; catch: caught;
        begin: began; sleep: slept; drive: drove; find: found; speak: spoke; steal: stole; wear: wore
    """)),
    Table("plural", "One {}, two", pairs("""
        child: children; mouse: mice; foot: feet; tooth: teeth; man: men; woman: women; goose: geese; leaf: leaves;
        knife: knives; wolf: wolves; ox: oxen; person: people; city: cities; box: boxes; sheep: sheep; potato: potatoes
    """)),
    Table("opposite", "The opposite of {} is", pairs("""
        hot: cold, warm, fire, sun; up: down, high, over, sky; big: small, large, huge, size;
        early: late, soon, morning, first; rich: poor, wealthy, money, gold; full: empty, filled, complete, glass;
        wet: dry, water, damp, rain; loud: quiet, noisy, sound, music; strong: weak, powerful, muscle, iron;
        deep: shallow, low, ocean, dark; wide: narrow, broad, large, road; war: peace, battle, army, fight;
        brave: cowardly, bold, heroic, strong; ancient: modern, old, antique, historic;
        guilty: innocent, ashamed, criminal, bad; victory: defeat, win, triumph, prize;
        smooth: rough, soft, flat, silky; generous: selfish, kind, giving, rich
    """)),
    Table("color", "The usual color of {} is", pairs("""
        a banana: yellow; fresh grass: green; snow: white; coal: black; a ripe tomato: red; a clear sky: blue;
        an orange: orange; an eggplant: purple; chocolate: brown; an elephant: gray; a flamingo: pink; a lemon: yellow;
        blood: red; milk: white
    """)),
    Table("unit", "The unit used to measure {} is the", pairs("""
        electric current: ampere; voltage: volt; electrical resistance: ohm; power: watt; force: newton; energy: joule;
        pressure: pascal; frequency: hertz; mass: kilogram; length: meter; time: second; temperature: degree;
        the volume of a liquid: liter; angles: radian
    """)),
    Table("job", "A person who {} is called a", pairs("""
        bakes bread: baker; cuts hair: barber; puts out fires: firefighter; flies a plane: pilot; grows crops: farmer;
        repairs pipes: plumber; makes things of wood: carpenter; takes photos: photographer;
        treats sick animals: veterinarian; looks after teeth: dentist; teaches children: teacher; writes poems: poet;
        designs buildings: architect; judges in a court: judge; studies the stars: astronomer; lends books: librarian;
        serves food in a restaurant: waiter; sells medicine: pharmacist; leads an orchestra: conductor;
        sews clothes: tailor
    """)),
    Table("month", "The month that comes right after {} is", pairs("""
        January: February; March: April; April: May; May: June; July: August; August: September; October: November;
        November: December; December: January
    """)),
    Table("count", "The number of {} is", pairs("""
        days in a week: seven; months in a year: twelve; sides of a triangle: three; legs of a spider: eight;
        legs of an insect: six; hours in a day: twenty-four; minutes in an hour: sixty; sides of a square: four;
        wheels of a bicycle: two; fingers on one hand: five; years in a century: one hundred; years in a decade: ten
    """)),
    Table("food", "The main ingredient of {} is", pairs("""
        bread: flour; cheese: milk; wine: grapes; an omelette: eggs; tofu: soybeans; hummus: chickpeas;
        chocolate: cocoa; guacamole: avocado; ketchup: tomatoes; sushi: rice; french fries: potatoes;
        sauerkraut: cabbage; cider: apples; popcorn: corn
    """)),
    Table("year", "{} in the year", pairs("""
        The Second World War ended: 1945, 1918, 1939, 1956; The First World War began: 1914, 1905, 1929, 1939;
        The Berlin Wall fell: 1989, 1961, 1979, 1999; The first person walked on the Moon: 1969, 1957, 1975, 1981;
        The Titanic sank: 1912, 1898, 1923, 1937; Columbus first reached the Americas: 1492, 1215, 1588, 1607;
        The French Revolution began: 1789, 1689, 1815, 1848;
        The American Declaration of Independence was signed: 1776, 1492, 1812, 1865;
        The American Civil War ended: 1865, 1776, 1815, 1898; The Soviet Union was dissolved: 1991, 1945, 1969, 2001;
        The Great Fire of London broke out: 1666, 1066, 1789, 1851;
        The Battle of Hastings was fought: 1066, 1215, 1415, 1666; The Magna Carta was sealed: 1215, 1066, 1492, 1776;
        The Battle of Waterloo was fought: 1815, 1715, 1865, 1914;
        The Russian Revolution took place: 1917, 1861, 1945, 1991
    """)),
    Table("landmark", "{} is found in", pairs("""
        The Eiffel Tower: France; The Colosseum: Italy; The Great Wall: China; The Taj Mahal: India; Machu Picchu: Peru;
        The Statue of Liberty: the United States; Big Ben: England; The Parthenon: Greece; The Great Pyramid: Egypt;
        Mount Fuji: Japan; The Sagrada Familia: Spain; The Kremlin: Russia; The Brandenburg Gate: Germany;
        Angkor Wat: Cambodia
    """)),
)


def choice_row(query: str, gold: str, wrong: list[str], rng: random.Random) -> dict[str, Any]:
    """A row {"query", "choices", "gold"} with the right answer at a random place."""
    choices = [gold, *wrong]
    rng.shuffle(choices)
    return {"query": query, "choices": choices, "gold": choices.index(gold)}


def question(table: Table, subject: str, rng: random.Random) -> dict[str, Any]:
    """One fact against its own wrong answers, or else against three other answers of its table."""
    gold, *others = table.facts[subject]
    others = others or sorted({answer for answer, *_ in table.facts.values()} - {gold})
    return choice_row(table.query.format(subject), gold, rng.sample(others, CHOICES - 1), rng)


def make_rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Rows {"query", "choices", "gold"} for valid and test."""
    rng = random.Random(f"knowledge-{seed}")
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SIZES}
    for table in TABLES:
        subjects = list(table.facts)
        rng.shuffle(subjects)
        for place, subject in enumerate(subjects):
            rows["valid" if place % 3 == 0 else "test"].append(question(table, subject, rng))
    for split, size in SIZES.items():
        rng.shuffle(rows[split])
        rows[split] = rows[split][:size]
    return rows
