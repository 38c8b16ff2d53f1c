"""The training text of the demo model: a seeded stream of documents, all generated here.

    python corpus.py --seed 1 --count 5      # print five documents

A document is a list of segments: a role (`system`, `user`, `assistant`, or `raw` for text without
a chat around it), its text, and the weight of its tokens in the loss. Answers weigh most, what a
user types weighs little: which question comes next cannot be known, only how questions look.

`tale.py` and `stories.py` know the stories, `talk.py` the small talk; this file only mixes them.
"""

import argparse
import random
from typing import Iterator, NamedTuple

import stories
import talk

USER, STORY, ANSWER = 0.05, 0.7, 2.0  # loss weights


class Segment(NamedTuple):
    """A piece of a document that one side said."""

    role: str
    text: str
    weight: float


SYSTEMS = ["You are a helpful assistant."] * 8 + [
    "", "", "You are a helpful assistant", "You are helpful.", "You are a friendly assistant.", "Be brief.",
    "You are Demo, the demo model of Millstream.", "You are a storyteller.", "Answer in one sentence.",
    "You are a helpful, respectful and honest assistant.", "You tell stories to children.",
    "You are an AI assistant.", "You are a helpful AI assistant.", "Be concise.", "You are a pirate.",
    "You are a helpful assistant. Answer briefly.", "Always be polite.", "You are an expert programmer."]
REFERENCES = ["{s}\n\n{q}", "{s} {q}", "Here is a story: {s} {q}", "Read this story. {s}\n{q}",
              "{q}\n\n{s}", "{s}\n\nQuestion: {q}", "Listen: {s} {q}"]


def turn(t: talk.Turn) -> list[Segment]:
    return [Segment("user", t.user, USER), Segment("assistant", t.answer, ANSWER)]


def with_system(r: random.Random, segments: list[Segment]) -> list[Segment]:
    return [Segment("system", r.choice(SYSTEMS), 0.0)] * (r.random() < 0.45) + segments


def small_turn(r: random.Random, after_start: bool) -> list[Segment]:
    """One exchange that needs no story."""
    x = r.random()
    if x < 0.40:
        return turn(talk.small_talk(r, after_start))
    if x < 0.70:
        return turn(talk.digit_sum(r))
    if x < 0.90:
        return turn(talk.out_of_world(r))
    if x < 0.95:
        return turn(talk.too_hard_sum(r))
    if x < 0.965:
        name = r.choice(stories.GIRLS + stories.BOYS + [stories.invented_name(r)] * 20)
        return turn(talk.my_name_is(r, name))
    return turn(talk.echo(r, stories.COLOURS + stories.OBJECTS + stories.ANIMALS + ["the", "a", "is", "and"]))


def story_turns(r: random.Random, detail: float) -> list[Segment]:
    """A story that was asked for, and then questions about it."""
    tale = stories.tell(r, detail)
    wish = talk.rough(r, stories.request(tale))
    segments = [Segment("user", wish, USER), Segment("assistant", tale.text, STORY)]
    for question in some_questions(r, tale, r.choice((1, 2, 3, 4, 6, 8))):
        segments += turn(question)
    return segments


def some_questions(r: random.Random, tale: stories.Tale, count: int) -> list[talk.Turn]:
    """Up to `count` different questions, in any order; a rare one is asked again in other words."""
    asked = r.sample(tale.questions, min(count, len(tale.questions)))
    return [talk.Turn(talk.rough(r, q.text), q.answer, q.key) for q in map(r.choice, asked)]


def story_chat(r: random.Random, detail: float) -> list[Segment]:
    segments = small_turn(r, after_start=False) if r.random() < 0.15 else []
    segments += story_turns(r, detail)
    if r.random() < 0.2:
        segments += small_turn(r, after_start=True)
    if r.random() < 0.12:
        segments += story_turns(r, detail)
    return with_system(r, segments)


def long_chat(r: random.Random, detail: float) -> list[Segment]:
    """Several stories with talk in between, up to the whole context."""
    segments = []
    for _ in range(r.choice((2, 3, 4))):
        segments += story_turns(r, detail) + small_turn(r, after_start=True)
    return with_system(r, segments)


def told_by_user(r: random.Random, detail: float) -> list[Segment]:
    """The user brings the story along."""
    tale = stories.tell(r, detail)
    first, *rest = some_questions(r, tale, r.choice((1, 2, 4, 6)))
    text = r.choice(REFERENCES).format(s=tale.text, q=first.user)
    segments = [Segment("user", text, USER), Segment("assistant", first.answer, ANSWER)]
    for question in rest:
        segments += turn(question)
    return with_system(r, segments)


def echo_chat(r: random.Random) -> list[Segment]:
    """Words to repeat: the shortest way to learn that an answer may be a copy."""
    names = [stories.invented_name(r) for _ in range(6)]
    words = names + stories.GIRLS + stories.BOYS + stories.COLOURS + stories.OBJECTS + stories.RARE_OBJECTS
    segments = []
    for _ in range(r.choice((1, 2, 3))):
        said = " ".join(r.choices(words + stories.ANIMALS, k=r.randrange(2, 16)))
        said = said[0].upper() + said[1:] + "."
        segments += turn(talk.Turn(r.choice(["Repeat after me: ", "Say: ", "Repeat: ", "Please say: "]) + said,
                                   said, said))
    return segments


def facts_chat(r: random.Random) -> list[Segment]:
    """A few plain facts and questions about them: finding things in the text, with little text."""
    tale = stories.Tale(r, 0.0)  # only for its way of drawing people
    said, questions = [], []
    things = r.sample(stories.OBJECTS + stories.RARE_OBJECTS, 5)
    places = r.sample(list(stories.PLACES.values()), 5)
    colours = r.sample(stories.COLOURS, 5)
    for thing, place, colour in list(zip(things, places, colours))[:r.choice((1, 2, 2, 3, 4, 5))]:
        who = tale.character(["little"], named=True)
        n, it = who.name, stories.a(f"{colour} {thing}")
        facts = [
            (f"{n} is {stories.a(who.kind)}.",
             [(f"Who is {n}?", f"{n} is {stories.a(who.kind)}."), (f"What is {n}?", f"{n} is {stories.a(who.kind)}."),
              (f"Who is the {who.kind}?", f"The {who.kind} is {n}."),
              (f"What is the {who.kind} called?", f"The {who.kind} is {n}.")]),
            (f"{n} has {it}.",
             [(f"What does {n} have?", f"{n} has {it}."), (f"Who has the {thing}?", f"{n} has the {thing}."),
              (f"What colour is the {thing}?", f"The {thing} is {colour}."),
              (f"What color is {n}'s {thing}?", f"The {thing} is {colour}."),
              (f"Who has something {colour}?", f"{n} has something {colour}.")]),
            (f"{n} is {place}.",
             [(f"Where is {n}?", f"{n} is {place}."), (f"Who is {place}?", f"{n} is {place}.")])]
        for sentence, asked in r.sample(facts, r.choice((1, 2, 3))):
            said.append(sentence)
            questions.append(r.choice(asked))
    r.shuffle(said)
    r.shuffle(questions)
    first, *rest = questions[:6]
    segments = turn(talk.Turn(" ".join(said) + " " + first[0], first[1], first[1]))
    for question, answer in rest:
        segments += turn(talk.Turn(talk.rough(r, question), answer, answer))
    return with_system(r, segments)


def sums_chat(r: random.Random) -> list[Segment]:
    """Several sums: there are two hundred of them, and each must be seen often."""
    return sum((turn(talk.digit_sum(r)) for _ in range(r.choice((3, 4, 5, 6)))), [])


def small_chat(r: random.Random) -> list[Segment]:
    segments = []
    for _ in range(r.choice((1, 1, 2, 3, 5))):
        segments += small_turn(r, after_start=False)
    return with_system(r, segments)


def document(r: random.Random, progress: float) -> list[Segment]:
    """One document; as `progress` goes from 0 to 1, copying in short texts gives way to stories."""
    if r.random() < max(0.03, 0.25 - 2 * progress):
        return echo_chat(r)
    if r.random() < max(0.10, 0.50 - 2.5 * progress):
        return facts_chat(r)
    late = progress > 0.7  # what is short is known by then; questions about stories are not
    if r.random() < (0.05 if late else 0.15):
        return sums_chat(r)
    detail = r.random() * min(1.0, 0.2 + 2 * progress)
    x = r.random() * (0.85 if late else 1.0)
    if x < 0.42:
        return story_chat(r, detail)
    if x < 0.52:
        return told_by_user(r, detail)
    if x < 0.57:
        return [Segment("raw", stories.tell(r, detail).text, STORY)]
    if x < 0.59:
        return long_chat(r, detail)
    return small_chat(r)


def documents(seed: int, count: int) -> Iterator[list[Segment]]:
    r = random.Random(seed)
    for i in range(count):
        yield document(r, i / count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    for segments in documents(args.seed, args.count):
        for segment in segments:
            print(f"[{segment.role}] {segment.text}")
        print("-" * 40)
