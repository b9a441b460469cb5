"""The synthetic corpus of the demo model: documents drawn from one seeded generator.

Everything the model learns is written here and in the files beside this one, and no other text was used:

  facts.py    what it knows, what it refuses, jokes and poems
  sums.py     adding and subtracting
  stories.py  stories
  tasks.py    JSON, tools, names, repeating, comparing: what is read from the prompt
  words.py    the words they share

One seed always gives one corpus. Standard library only.

    python corpus.py --count 20          print some documents
    python corpus.py --facts             print the number of facts and questions
"""

import argparse
import collections
import random
from dataclasses import dataclass

import tasks
from facts import COLOURS, COUNTRIES, FREE, OPPOSITES, REFUSALS, THINGS, build_facts
from stories import ANIMAL_STORY_ASKS, ANIMALS, NAMED_STORY_ASKS, STORY_ASKS, story, story_ask
from sums import LIMITS, build_sums, sum_asks
from words import CITIES, article, capitalise, chance, first_name, made_up

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

SYSTEM_SUBJECTS = ["You are a helpful assistant.", "You are a helpful and friendly assistant.", "You answer questions.", "You are a small model.",
                   "You are the sconce demo model.", "You are a teacher.", "You are a kind assistant.", "Be brief.", "You are a chatbot.", ""]
SYSTEM_MANNERS = ["Answer in one sentence.", "Be polite.", "Answer the question.", "Give short answers.", "Be clear.", "Speak simply.",
                  "Do not make things up.", "Say so when you do not know.", ""]
RAW_FORMS = [("{ask}\n", 85), ("Question: {ask}\nAnswer: ", 8), ("Q: {ask}\nA: ", 7)]

# How often each skill is drawn, before forms are chosen.
SKILL_WEIGHTS = {
    "machine learning": 15, "computing": 3, "science": 9, "capitals": 17, "continents": 5, "calendar": 9, "colours": 3,
    "units": 4, "counts": 4, "opposites": 4, "sounds": 2, "single facts": 5, "small talk": 10, "refusals": 13, "sums": 38,
    "yes or no": 8, "stories": 6, "jokes": 2, "fun facts": 1, "poems": 1, "haiku": 1, "tables": 4, "json": 14, "repeating": 5,
    "comparing": 4, "paragraphs": 3,
}
SUM_WEIGHTS = {"small": 50, "medium": 40, "large": 10}
# Chats that need a form of their own, of all documents.
TOOL_SHARE, TOLD_SHARE = 0.11, 0.03


@dataclass(frozen=True)
class Document:
    """A training text and the character spans that are answers."""

    text: str
    answers: tuple


def fill(rng, template):
    """Fills the free fields of a refusal with random names, words and numbers."""
    word = made_up(rng)
    if rng.random() < 0.3:
        word += " " + made_up(rng)
    return capitalise(template.format(
        city=rng.choice(CITIES), person=f"{first_name(rng)} {made_up(rng).capitalize()}", thing=rng.choice(THINGS),
        land=made_up(rng).capitalize(), x=word, a=rng.choice((word, word, article(word))),
        m=rng.randrange(2, 100), n=rng.randrange(2, 20), big=rng.randrange(100, 1000), year=rng.randrange(1500, 2030)))


def restyle(rng, ask, subject=""):
    """Varies the casing and the final mark, as people do."""
    draw = rng.random()
    if subject and draw < 0.25:
        return ask.replace(subject, " ".join(capitalise(word) for word in subject.split()))
    if draw < 0.50:
        return ask
    if draw < 0.70:
        return ask.lower()
    if draw < 0.80:
        return ask.rstrip("?.!")
    if draw < 0.95:
        return ask.lower().rstrip("?.!")
    return "Please tell me: " + ask[:1].lower() + ask[1:] if ask.endswith("?") else ask


# Skills that no tool helps with.
UNHELPED = ["machine learning", "science", "capitals", "continents", "small talk", "stories", "opposites", "counts", "json", "yes or no", "jokes"]


def pairs_to_turns(pairs):
    return [turn for ask, answer in pairs for turn in (("user", ask), ("assistant", answer))]


def turn_text(role, text):
    """A turn as the chat template writes it; what a tool returned comes in a turn of the user."""
    if role == "tool":
        role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
    return f"{IM_START}{role}\n{text}{IM_END}\n"


def chat_document(turns, system=None):
    text, answers = "" if system is None else turn_text("system", system), []
    for role, said in turns:
        whole = turn_text(role, said)
        if role == "assistant":
            start = len(text) + len(f"{IM_START}{role}\n")
            answers.append((start, len(text) + len(whole) - 1))
        text += whole
    return Document(text, tuple(answers))


def yes_or_no(rng, new=False):
    """A question about a fact, true half of the time, and its answer. One in eight is held out.

    The answer says the fact first, so that the model need not know the verdict before it has found the fact.
    """
    while True:
        ask, fact, true = claim(rng)
        if chance(ask, 8) == new:
            return ask, f"{capitalise(fact)} So {'yes' if true else 'no'}."


def claim(rng):
    """A question whether something is so, the fact it is about, and whether it is so."""
    true = rng.random() < 0.5
    kind = rng.randrange(4)
    if kind == 0:
        country, capital, _ = rng.choice(COUNTRIES)
        guess = capital if true else rng.choice([other for _, other, _ in COUNTRIES if other != capital])
        fact = f"the capital of {country} is {capital.rstrip('.')}."
        return f"Is {guess} the capital of {country}?", fact, true
    if kind == 1:
        country, _, continent = rng.choice(COUNTRIES)
        guess = continent if true else rng.choice(sorted({other for *_, other in COUNTRIES if other != continent}))
        fact = f"{country} is a country in {continent}."
        return f"Is {country} in {guess}?", fact, true
    if kind == 2:
        thing, colour = rng.choice(COLOURS)
        guess = colour if true else rng.choice(sorted({other for _, other in COLOURS if other != colour}))
        fact = f"{thing} is {colour}."
        return f"Is {thing} {guess}?", fact, true
    word, opposite = rng.choice(OPPOSITES)
    if rng.random() < 0.5:
        word, opposite = opposite, word
    guess = opposite if true else rng.choice([other for pair in OPPOSITES for other in pair if other not in (word, opposite)])
    fact = f"the opposite of {word} is {opposite}."
    return f"Is {guess} the opposite of {word}?", fact, true


class Corpus:
    """Draws questions, answers and whole documents from one seeded generator."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.facts = collections.defaultdict(list)
        for item in build_facts():
            self.facts[item.skill].append(item)
        self.free = {skill: (answers, asks) for skill, answers, asks, _ in FREE}
        self.sums = {size: build_sums(size)[0] for size in LIMITS}
        self.skills = list(SKILL_WEIGHTS)
        self.weights = list(SKILL_WEIGHTS.values())

    def sum(self):
        size, = self.rng.choices(list(SUM_WEIGHTS), SUM_WEIGHTS.values())
        return self.rng.choice(self.sums[size])

    def exchange(self, skill):
        """A (question, answer) of the skill."""
        rng = self.rng
        if skill == "refusals":
            answer, asks, _ = rng.choice(REFUSALS)
            return restyle(rng, fill(rng, rng.choice(asks))), answer
        if skill == "sums":
            sign, m, n, result = self.sum()
            ask = rng.choice(sum_asks(sign)).format(m=m, n=n)
            return restyle(rng, ask), f"{m} {sign} {n} = {result}."
        if skill == "stories":
            animal = rng.choice(ANIMALS)
            if rng.random() < 0.25:
                name = first_name(rng)
                return story_ask(rng.choice(NAMED_STORY_ASKS), animal, name), story(rng, animal, name)
            ask = story_ask(rng.choice(STORY_ASKS + ANIMAL_STORY_ASKS * 2), animal)
            return restyle(rng, ask), story(rng, animal)
        if skill in self.free:
            answers, asks = self.free[skill]
            return restyle(rng, rng.choice(asks)), rng.choice(answers)
        if skill == "json":
            return tasks.json_exchange(rng)
        if skill == "repeating":
            return tasks.repeat_exchange(rng)
        if skill == "comparing":
            ask, answer = tasks.compare_exchange(rng)
            return restyle(rng, ask), answer
        if skill == "yes or no":
            ask, answer = yes_or_no(rng)
            return restyle(rng, ask), answer
        item = rng.choice(self.facts[skill])
        return restyle(rng, rng.choice(item.asks), item.subject), item.answer

    def continuation(self, skill):
        """A text of the skill that is no answer to a question, or None."""
        rng = self.rng
        if skill == "stories":
            return "", story(rng, rng.choice(ANIMALS))
        if skill in self.free:
            return "", rng.choice(self.free[skill][0]).removeprefix("Here is one: ")
        if skill == "sums":
            sign, m, n, result = self.sum()
            return f"{m} {sign} {n} =", f" {result}"
        stems = [item for item in self.facts[skill] if item.stem]
        if not stems:
            return None
        item = rng.choice(stems)
        return item.stem, item.answer[len(item.stem):]

    def table(self):
        """A list: counting, or the sums of one number."""
        rng = self.rng
        if rng.random() < 0.4:
            start = rng.randrange(0, 35)
            end = rng.randrange(start + 2, start + 12)
            numbers = ", ".join(str(n) for n in range(start, end + 1))
            return f"Count from {start} to {end}.\n", numbers + "."
        limit = LIMITS["small"]
        sign, fixed = rng.choice("+-"), rng.randrange(1, limit + 1)
        rows = [f"{m} {s} {n} = {result}" for s, m, n, result in self.sums["small"] if s == sign and n == fixed]
        first = rng.randrange(len(rows))
        return "", "\n".join(rows[first:first + 8])

    def paragraph(self):
        """Plain text: some sentences of one skill after another."""
        rng = self.rng
        skill = rng.choice(["machine learning", "computing", "science", "capitals", "continents", "colours", "units", "counts", "sounds"])
        items = rng.sample(self.facts[skill], rng.randrange(2, 5))
        return "", " ".join(item.answer for item in items)

    def raw(self, skill):
        if skill == "tables":
            ask, answer = self.table()
        elif skill == "paragraphs":
            ask, answer = self.paragraph()
        elif self.rng.random() < 0.15 and (pair := self.continuation(skill)):
            ask, answer = pair
        else:
            ask, answer = self.exchange(skill)
            forms, weights = zip(*RAW_FORMS)
            ask = self.rng.choices(forms, weights)[0].format(ask=ask)
            if ask.endswith(" "):
                ask, answer = ask[:-1], " " + answer
        return Document(ask + answer + END_OF_TEXT, ((len(ask), len(ask) + len(answer) + len(END_OF_TEXT)),))

    def chat_exchange(self, skill):
        """A (question, answer) for a chat, in which plain text has no place."""
        return self.exchange({"tables": "sums", "paragraphs": "science"}.get(skill, skill))

    def exchanges(self, low, high):
        return [self.chat_exchange(self.skill()) for _ in range(self.rng.randrange(low, high))]

    def system(self):
        return f"{self.rng.choice(SYSTEM_SUBJECTS)} {self.rng.choice(SYSTEM_MANNERS)}".strip()

    def chat(self, skill):
        """A chat of one to eight exchanges, at times with a system message."""
        first = self.chat_exchange(skill)
        others = [] if self.rng.random() < 0.75 else self.exchanges(1, 8)
        return chat_document(pairs_to_turns([first] + others), self.system() if self.rng.random() < 0.4 else None)

    def told_chat(self):
        """A chat in which the model is told something and asked for it later."""
        rng = self.rng
        tell, answer, ask, recall = tasks.told(rng)
        pairs = [(tell, answer)] + self.exchanges(0, 3) + [(ask, recall)]
        if rng.random() < 0.3:
            pairs = [self.chat_exchange(self.skill())] + pairs
        return chat_document(pairs_to_turns(pairs), self.system() if rng.random() < 0.4 else None)

    def tool_chat(self):
        """A chat with tools: mostly one that is needed, else none that is."""
        rng = self.rng
        if rng.random() < 0.2:
            specs = tasks.other_tools(rng, rng.choice((1, 1, 2)))
            turns = pairs_to_turns([self.chat_exchange(rng.choice(UNHELPED))])
        else:
            specs, turns = tasks.tool_turns(rng)
            if rng.random() < 0.15:
                turns = pairs_to_turns([self.chat_exchange(rng.choice(UNHELPED))]) + turns
        system = tasks.tools_text(specs)
        if rng.random() < 0.4:
            system = f"{self.system()}\n\n{system}".strip()
        return chat_document(turns, system)

    def skill(self):
        return self.rng.choices(self.skills, self.weights)[0]

    def documents(self):
        """An endless stream of documents, half of them raw text and half chats."""
        while True:
            draw = self.rng.random()
            if draw < TOOL_SHARE:
                yield self.tool_chat()
            elif draw < TOOL_SHARE + TOLD_SHARE:
                yield self.told_chat()
            else:
                skill = self.skill()
                yield self.raw(skill) if self.rng.random() < 0.52 else self.chat(skill)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--facts", action="store_true")
    args = parser.parse_args()
    if args.facts:
        groups = collections.defaultdict(list)
        for item in build_facts():
            groups[item.skill].append(item)
        for skill, items in groups.items():
            print(f"{skill:18} {len(items):4} facts  {sum(len(i.asks) for i in items):5} trained questions  "
                  f"{sum(len(i.new_pairings) for i in items):4} new pairings  {sum(len(i.new_phrasings) for i in items):4} new phrasings")
        for size in LIMITS:
            trained, held = build_sums(size)
            print(f"{size + ' sums':18} {len(trained)} trained, {len(held)} held out")
        return
    stream = Corpus(args.seed).documents()
    for _ in range(args.count):
        print(repr(next(stream).text))


if __name__ == "__main__":
    main()
