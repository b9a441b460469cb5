"""Scores the demo model, with greedy decoding, on questions it was and was not trained on.

Every question has one right answer, or a list of them, and only that exact text counts (a story must begin with the
animal and the name asked for), once it has come to its end. Columns:

  trained       a phrasing trained with this fact; where values are read from the prompt, they are drawn anew
  new pairing   a phrasing trained with other facts only; for sums, numbers never trained
  new phrasing  a phrasing never trained with this skill; for tools, also names of tools and arguments
  untrained     capitals of countries that no document names

What needs no earlier turns goes as raw text, as a chat, or as a chat with a system message that is not in the corpus,
drawn at random. By default questions go to a running server's `POST /generate`, with the standard library alone; `--checkpoint model.gguf` runs
the dequantised weights in transformers instead.

How well the mean log-probability of an answer's tokens tells right from wrong is said as the area under the ROC curve
(AUROC), over facts and sums in every column but the first. An answer that refuses is left out of
it, as nobody would take it for knowledge; how many there were is printed.

    python evaluate.py --url http://127.0.0.1:3000
    python evaluate.py --checkpoint models/demo/model.gguf
    python evaluate.py --checkpoint models/demo/model.gguf --freeze 50 tests/it/golden/demo_answers.json
"""

import argparse
import collections
import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import corpus
import facts
import stories
import sums
import tasks

SEED = 5
MAX_NEW_TOKENS = 200
KINDS = ["trained", "new pairing", "new phrasing", "untrained"]
FORMS = ["raw", "chat", "chat with system"]
SYSTEM = "You are a careful guide who works in a museum."
MADE = 60  # questions of each kind for skills whose questions are drawn at random
FACTUAL = ["machine learning", "computing", "science", "capitals", "continents", "calendar", "colours", "units", "counts", "opposites",
           "sounds", "single facts"]
SUMS = ["small sums", "medium sums", "large sums"]


@dataclass(frozen=True)
class Question:
    skill: str
    kind: str
    form: str
    prompt: str
    answers: tuple  # the texts that are right; for a story, what its first sentence must hold

    def is_right(self, answer):
        text = answer.text.strip()
        if self.skill in ("stories", "named stories"):
            return answer.ended and all(part in text.split(".")[0] for part in self.answers) and len(text) > 200
        return answer.ended and text in self.answers


@dataclass(frozen=True)
class Answer:
    text: str
    logprob: float  # mean of its tokens
    ended: bool  # by an end token, rather than cut off


def prompt_of(turns, system=None):
    """A chat up to the answer that is asked for."""
    return corpus.chat_document(turns, system).text + corpus.IM_START + "assistant\n"


def plain_prompt(ask, form):
    if form == "raw":
        return ask
    return prompt_of([("user", ask)], SYSTEM if form == "chat with system" else None)


def known(rng):
    """(skill, kind, question, right answers) of all that needs nothing but the question."""
    for fact in facts.build_facts():
        yield fact.skill, "trained", rng.choice(fact.asks), (fact.answer,)
        for ask in fact.new_pairings:
            yield fact.skill, "new pairing", ask, (fact.answer,)
        for ask in fact.new_phrasings:
            yield fact.skill, "new phrasing", ask, (fact.answer,)
    for country, capital in facts.UNSEEN_COUNTRIES:
        yield "capitals", "untrained", rng.choice(facts.CAPITAL_ASKS).format(c=country), (f"The capital of {country} is {capital}.",)
    for size in sums.LIMITS:
        for kind, drawn in zip(KINDS, sums.build_sums(size)):
            for sign, m, n, result in rng.sample(drawn, min(len(drawn), 300)):
                yield f"{size} sums", kind, rng.choice(sums.sum_asks(sign)).format(m=m, n=n), (f"{m} {sign} {n} = {result}.",)
    for answer, asks, new_asks in facts.REFUSALS:
        for kind, templates in (("trained", asks), ("new phrasing", new_asks)):
            for ask in templates:
                yield "refusals", kind, corpus.fill(rng, ask), (answer,)
    for skill, answers, asks, new_asks in facts.FREE:
        for kind, templates in (("trained", asks), ("new phrasing", new_asks)):
            for ask in templates:
                yield skill, kind, ask, tuple(answers)
    for animal in stories.ANIMALS:
        for kind, asks in (("trained", stories.ANIMAL_STORY_ASKS[:3]), ("new phrasing", stories.STORY_NEW_ASKS)):
            for ask in asks:
                yield "stories", kind, stories.story_ask(ask, animal), (f" {animal} named ",)
        for kind, asks in (("trained", stories.NAMED_STORY_ASKS), ("new phrasing", stories.NAMED_STORY_NEW_ASKS)):
            name = corpus.first_name(rng)
            yield "named stories", kind, stories.story_ask(rng.choice(asks), animal, name), (f" {animal} named {name} ",)
    for kind, new in (("trained", False), ("new pairing", True)):
        for _ in range(2 * MADE):
            ask, answer = corpus.yes_or_no(rng, new)
            yield "yes or no", kind, ask, (answer,)
    for kind, new in (("trained", False), ("new phrasing", True)):
        for _ in range(MADE):
            for skill, make in (("json", tasks.json_exchange), ("repeating", tasks.repeat_exchange), ("comparing", tasks.compare_exchange)):
                ask, answer = make(rng, new)
                yield skill, kind, ask, (answer,)


def talked(rng):
    """(skill, kind, prompt, right answers) of all that needs what was said before, or tools."""
    for kind, new in (("trained", False), ("new phrasing", True)):
        for _ in range(MADE):
            tell, answer, ask, recall = tasks.told(rng, new)
            between = [("user", "What is the capital of Spain?"), ("assistant", "The capital of Spain is Madrid.")] * rng.randrange(2)
            yield "what was told", kind, prompt_of([("user", tell), ("assistant", answer)] + between + [("user", ask)]), (recall,)

            specs, turns = tasks.tool_turns(rng, new)
            while turns[1][1].count("<tool_call>") > 1:
                specs, turns = tasks.tool_turns(rng, new)
            system = tasks.tools_text(specs)
            yield "tool calls", kind, prompt_of(turns[:1], system), (turns[1][1],)
            returned, report = tasks.result(rng)
            yield "tool results", kind, prompt_of(turns[:2] + [("tool", returned)], system), (report,)

            fact = rng.choice([fact for fact in facts.build_facts() if fact.skill == "capitals"])
            yield "tools not needed", kind, prompt_of([("user", rng.choice(fact.new_phrasings if new else fact.asks))], system), (fact.answer,)


def questions(sample):
    """All questions, or at most `sample` of each skill and kind."""
    rng = random.Random(SEED)
    groups = collections.defaultdict(list)
    for skill, kind, ask, answers in known(rng):
        form = rng.choice(FORMS)
        groups[skill, kind].append(Question(skill, kind, form, plain_prompt(ask, form), answers))
    for skill, kind, prompt, answers in talked(rng):
        groups[skill, kind].append(Question(skill, kind, "chat", prompt, answers))
    return [question for group in groups.values()
            for question in (rng.sample(group, sample) if sample and len(group) > sample else group)]


def ask_server(url, prompts, parallel):
    """Answers from the server, in order."""
    def generate(prompt):
        parameters = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "details": True}
        request = urllib.request.Request(url.rstrip("/") + "/generate", json.dumps({"inputs": prompt, "parameters": parameters}).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        details = answer["details"]
        logprobs = [token["logprob"] for token in details["tokens"]]
        return Answer(answer["generated_text"], sum(logprobs) / len(logprobs), details["finish_reason"] == "eos_token")

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(generate, prompts))


def ask_checkpoint(path, prompts, parallel):
    """Answers in transformers from the weights of a GGUF file, in order.

    Prompts of equal length run together, so that none needs padding.
    """
    import torch
    from tokenizers import Tokenizer

    from export import END_OF_TEXT_ID, IM_END_ID, load_gguf

    model = load_gguf(path)
    tokenizer = Tokenizer.from_file(str(path.with_name("tokenizer.json")))
    by_length = collections.defaultdict(list)
    for i, encoding in enumerate(tokenizer.encode_batch(prompts)):
        by_length[len(encoding.ids)].append((i, encoding.ids))
    answers = [None] * len(prompts)
    for length, group in by_length.items():
        for start in range(0, len(group), parallel):
            part = group[start:start + parallel]
            inputs = torch.tensor([ids for _, ids in part])
            output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                                    eos_token_id=[END_OF_TEXT_ID, IM_END_ID], output_logits=True, return_dict_in_generate=True)
            logprobs = torch.stack([logits.log_softmax(-1).max(-1).values for logits in output.logits], 1).tolist()
            for (i, _), ids, row in zip(part, output.sequences[:, length:].tolist(), logprobs):
                ends = [at + 1 for at, token in enumerate(ids) if token in (END_OF_TEXT_ID, IM_END_ID)]
                count = ends[0] if ends else len(ids)
                answers[i] = Answer(tokenizer.decode(ids[:count], skip_special_tokens=True), sum(row[:count]) / count, bool(ends))
    return answers


def auroc(right, wrong):
    """The chance that a right answer has the higher score, ties counting half."""
    if not right or not wrong:
        return float("nan")
    ranked = sorted([(score, True) for score in right] + [(score, False) for score in wrong])
    wins, below, at = 0.0, 0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        ties = sum(not is_right for _, is_right in ranked[at:end])
        wins += sum(is_right for _, is_right in ranked[at:end]) * (below + ties / 2)
        below += ties
        at = end
    return wins / (len(right) * len(wrong))


def share(results):
    if not results:
        return "-"
    return f"{100 * sum(results) / len(results):.0f}% of {len(results)}"


def print_table(title, rows, columns, cells):
    print(f"| {title} | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in rows:
        print(f"| {row} | " + " | ".join(share(cells(row, column)) for column in columns) + " |")
    print()


def print_certainty(results):
    refusing = {answer for answer, *_ in facts.REFUSALS}
    print("| questions | right | wrong | refused | AUROC |\n|---|---:|---:|---:|---:|")
    for name, skills in (("facts", FACTUAL), ("sums", SUMS), ("all", FACTUAL + SUMS)):
        asked = [(answer.logprob, right, answer.text.strip() in refusing) for question, right, answer in results
                 if question.skill in skills and question.kind != "trained"]
        right = [score for score, is_right, _ in asked if is_right]
        wrong = [score for score, is_right, refused in asked if not is_right and not refused]
        refused = sum(refused for *_, refused in asked)
        print(f"| {name} | {len(right)} | {len(wrong)} | {refused} | {auroc(right, wrong):.3f} |")
    print()


def freeze(path, count, results):
    """Writes a sample of the questions with the model's answers: every skill in turn, held-out questions first."""
    rng = random.Random(SEED)
    groups = collections.defaultdict(list)
    for result in rng.sample(results, len(results)):
        if result[0].kind != "untrained":
            groups[result[0].skill].append(result)
    for group in groups.values():
        group.sort(key=lambda result: result[0].kind == "trained")
    order = FACTUAL * 2 + [skill for skill in groups if skill not in FACTUAL] * 2
    frozen = [groups[skill].pop(0) for skill in order[:count]]
    lines = [json.dumps({"skill": question.skill, "prompt": question.prompt, "answer": answer.text, "right": right}, ensure_ascii=False)
             for question, right, answer in frozen]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(frozen)} questions frozen in {path}, {sum(right for _, right, _ in frozen)} of them answered rightly")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--checkpoint", type=Path, metavar="GGUF", help="run this file in transformers; needs torch")
    parser.add_argument("--sample", type=int, help="at most this many questions of each skill and kind")
    parser.add_argument("--parallel", type=int, default=16, help="requests at once, or the batch size")
    parser.add_argument("--failures", action="store_true", help="print every wrong answer")
    parser.add_argument("--freeze", nargs=2, metavar=("COUNT", "FILE"), help="write this many questions with their answers")
    args = parser.parse_args()
    if args.freeze and args.sample:
        parser.error("--freeze takes its sample out of all questions")

    asked = questions(args.sample)
    prompts = [question.prompt for question in asked]
    if args.checkpoint:
        answers = ask_checkpoint(args.checkpoint, prompts, args.parallel)
    else:
        answers = ask_server(args.url, prompts, args.parallel)
    results = [(question, question.is_right(answer), answer) for question, answer in zip(asked, answers)]

    if args.failures:
        for question, right, answer in results:
            if not right:
                print(f"{question.skill}, {question.kind}, {answer.logprob:.3f}: {question.prompt!r} -> {answer.text!r}")
        print()
    skills = list(dict.fromkeys(question.skill for question in asked))

    def of(skills, kind):
        return [right for question, right, _ in results if question.skill in skills and question.kind == kind]

    print_table("skill", skills, KINDS, lambda skill, kind: of([skill], kind))
    print_table("together", ["facts", "everything"], KINDS[:3], lambda row, kind: of(FACTUAL if row == "facts" else skills, kind))
    print_table("form", FORMS, KINDS[:3], lambda form, kind: [
        right for question, right, _ in results if question.form == form and question.kind == kind])
    print_certainty(results)
    if args.freeze:
        freeze(Path(args.freeze[1]), int(args.freeze[0]), results)


if __name__ == "__main__":
    main()
