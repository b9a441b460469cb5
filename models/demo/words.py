"""Words that the skills of the demo model share: names, places, days, made-up words, and choices that hold still.

Standard library only.
"""

import hashlib

CITIES = ["Paris", "London", "Berlin", "Tokyo", "Rome", "Madrid", "Oslo", "Vienna", "Cairo", "Lagos", "Sydney", "Boston",
          "Chicago", "Milan", "Munich", "Osaka", "Delhi", "Lima", "Athens", "Dublin", "New York", "San Francisco", "Lisbon",
          "Prague", "Nairobi", "Seoul", "Hamburg", "Porto", "Geneva", "Quito"]
FIRST_NAMES = ["Marta", "Jonas", "Elin", "Petra", "Oskar", "Nadia", "Tomas", "Ingrid", "Felix", "Clara", "Hugo", "Selma",
               "Anna", "Ben", "Carla", "David", "Eva", "Frank", "Greta", "Henry", "Ida", "Jack", "Kim", "Leo", "Maria", "Noah",
               "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wanda", "Yusuf", "Zoe", "Alice", "Bob", "Emma", "John", "Mary"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ONSETS = "b br c ch d dr f g gl h j k l m n p pl r s sh st t th v w z".split()
VOWELS = "a e i o u ai ea oo".split()
CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "rt"]


def chance(text, one_in):
    """A fixed pseudo-random choice that depends on nothing but the text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % one_in == 0


def capitalise(text):
    return text[:1].upper() + text[1:]


def article(phrase):
    """The phrase with its indefinite article; numbers are read aloud."""
    an = phrase[0] in "aeiou8" or phrase in ("11", "18")
    return ("an " if an else "a ") + phrase


def listed(words):
    """"a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def made_up(rng):
    """A word of random syllables, standing for all that the model has never heard of."""
    syllables = rng.choice((2, 2, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def first_name(rng):
    """A name the model knows, or as often one that nobody bears."""
    return rng.choice(FIRST_NAMES) if rng.random() < 0.5 else made_up(rng).capitalize()


def city(rng):
    """A city the model knows, or as often one that does not exist."""
    return rng.choice(CITIES) if rng.random() < 0.5 else made_up(rng).capitalize()
