"""What stories are made of: words, characters, and a tale that knows the answers about itself.

A `Tale` is drawn from word lists by one `random.Random`: a hero, an object with a colour, a place,
a helper. Next to each sentence stand the questions that it answers, so that a question never asks
for what the story did not tell (except for the few whose answer is "The story does not say.").

This file does not know the plots, conversations, tokens or the chat template.
"""

import random
from dataclasses import dataclass, field

GIRLS = """Mia Anna Lily Emma Rosa Nora Ella Zoe Ruby Clara Luna Ivy Daisy Sara Maya Lucy Hazel Olive
Alice Poppy Tina Wendy Bella Nina Greta Molly Freya Amy Lena Pearl""".split()
BOYS = """Tom Ben Max Leo Sam Finn Oscar Jack Hugo Felix Theo Otto Milo Noah Toby Henry Peter Paul
Bruno Oliver Charlie Robin Kai Emil Louis Rex David Adam Simon Basil""".split()
ANIMALS = """fox rabbit bear mouse owl frog duck cat dog hedgehog squirrel turtle deer goat lamb pony
beaver badger otter penguin elephant lion tiger monkey wolf swan goose sparrow crow bee snail pig
dragon unicorn kitten puppy panda giraffe dinosaur hen""".split()
PEOPLE = "girl boy princess prince knight wizard pirate robot fairy giant farmer miller".split()
# Seldom drawn, so that the model learns to copy a word it has hardly seen.
RARE_ANIMALS = """parrot camel zebra whale dolphin shark crab bat mole raccoon kangaroo koala hippo eagle
crocodile llama seal peacock cricket spider lizard snake lobster moose chicken sheep cow horse worm
butterfly ant raven crane gorilla ostrich octopus donkey pigeon flamingo reindeer""".split()
RARE_PEOPLE = """king queen astronaut cowboy ninja ghost monster teacher baker doctor sailor dancer painter
fisherman witch elf dwarf mermaid captain gardener singer superhero alien grandmother child""".split()
RARE_OBJECTS = """bicycle sword teapot candle mirror clock ladder pillow violin guitar rocket telescope
pencil sandwich apple pumpkin trumpet necklace magnet compass suitcase bottle puzzle helmet backpack car
bucket broom hammer spaceship sled boomerang snowball potato jacket glove sock pebble wheel lamp
chair computer phone robot cup tent rope plate fork ticket letter bracelet jewel treasure""".split()
ONLY_GIRLS = {"girl", "princess", "queen", "witch", "mermaid", "grandmother"}
ONLY_BOYS = {"boy", "prince", "king", "fisherman", "cowboy"}
HERO_TRAITS = "little young small brave clever cheerful curious shy".split()
HELPER_TRAITS = "kind wise old friendly gentle strong patient quick".split()
COLOURS = "red blue green yellow purple orange pink white black brown golden silver".split()
OBJECTS = """kite ball hat boat lantern drum key scarf bell book cup umbrella basket blanket flute
ribbon button coat balloon wagon feather ring whistle top shell stone crown mitten doll train
shoe star flower coin box map bag spoon""".split()
PLACES = {  # where one goes to -> where one is
    "to the park": "in the park", "to the forest": "in the forest", "to the beach": "at the beach",
    "to the river": "by the river", "to the hill": "on the hill", "to the garden": "in the garden",
    "to the old bridge": "at the old bridge", "to the farm": "at the farm",
    "to the lake": "by the lake", "to the market": "at the market",
    "to the meadow": "in the meadow", "to the village": "in the village",
    "to the old mill": "at the old mill", "to the harbour": "at the harbour",
    "to the castle": "at the castle", "to the mountain": "on the mountain",
    "to the school": "at the school", "to the pond": "by the pond",
}
HOMES = ["in a small house by the mill", "in a hollow tree", "in a cosy cave", "on a quiet farm",
         "in a tiny cottage", "near a big oak", "at the edge of a village", "on a little island",
         "in a tall tower", "under an old bridge", "behind a green hill", "next to a bakery"]
SPOTS = ["behind a big rock", "under a bush", "in the tall grass", "behind an old tree",
         "under a bench", "on a wooden gate", "beside a stream", "between two stones",
         "under a pile of leaves", "in an empty nest", "on top of a fence", "inside a hollow log",
         "next to a well", "behind a red door"]
FOODS = ["warm bread", "apple pie", "honey cake", "hot soup", "berry jam", "pancakes", "cookies",
         "cheese", "nuts", "cherries", "porridge", "plum cake", "carrots", "hot chocolate"]
WEATHERS = "sunny windy rainy snowy cloudy foggy warm cold".split()


def a(words: str) -> str:
    """The words with the indefinite article in front."""
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def many(noun: str) -> str:
    """The plural of a kind: foxes, puppies, mice."""
    odd = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "deer": "deer", "sheep": "sheep",
           "child": "children", "fisherman": "fishermen", "dwarf": "dwarves"}
    if noun in odd:
        return odd[noun]
    if noun.endswith("y") and noun[-2] not in "aeou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "s", "ch", "sh")) else "s")


def invented_name(r: random.Random) -> str:
    """A name from no list, so that the model learns to copy names it has never seen."""
    syllables = [r.choice("b d f g h j k l m n p r s t v w z br tr st sh th".split())
                 + r.choice("a e i o u ia ee oo".split()) for _ in range(r.choice((2, 2, 3)))]
    return ("".join(syllables) + r.choice(["", "", "n", "l", "r", "x", "s", "ck"])).capitalize()


@dataclass
class Character:
    """Somebody in a story; `name` may be empty for a helper."""

    name: str
    kind: str
    trait: str
    female: bool

    @property
    def he(self) -> str:
        return "she" if self.female else "he"

    @property
    def him(self) -> str:
        return "her" if self.female else "him"

    @property
    def his(self) -> str:
        return "her" if self.female else "his"

    @property
    def who(self) -> str:
        """How the story calls the character once it is known."""
        return self.name or f"the {self.kind}"

    @property
    def described(self) -> str:
        return a(f"{self.trait} {self.kind}")

    @property
    def introduced(self) -> str:
        """How an answer names the character to somebody who forgot."""
        return f"{self.name}, {self.described}," if self.name else self.described


@dataclass
class Question:
    """A question about a tale; an answer is right if it contains `key`."""

    text: str
    answer: str
    key: str


@dataclass
class Tale:
    """One story: what it is about, its sentences, and the questions it answers."""

    r: random.Random
    detail: float  # the chance that an optional sentence is told
    hero: Character = field(init=False)
    helper: Character = field(init=False)
    colour: str = field(init=False)
    thing: str = field(init=False)
    going: str = field(init=False)
    weather: str = field(init=False)
    topic: str = ""
    summary: str = ""
    lines: list[str] = field(default_factory=list)
    questions: list[list[Question]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names_taken: set[str] = set()
        self.kinds_taken: set[str] = set()
        self.hero = self.character(HERO_TRAITS, named=True)
        self.helper = self.character(HELPER_TRAITS, named=self.r.random() < 0.6)
        self.colour = self.r.choice(COLOURS)
        self.thing = self.r.choice(RARE_OBJECTS if self.r.random() < 0.15 else OBJECTS)
        self.going = self.r.choice(list(PLACES))
        self.weather = self.r.choice(WEATHERS)

    def character(self, traits: list[str], named: bool) -> Character:
        """Draws somebody whose name and kind nobody else in the tale has."""
        while True:
            rare = self.r.random() < 0.12
            if self.r.random() < 0.25:
                kind = self.r.choice(RARE_PEOPLE if rare else PEOPLE)
            else:
                kind = self.r.choice(RARE_ANIMALS if rare else ANIMALS)
            female = self.r.random() < 0.5
            female = (female or kind in ONLY_GIRLS) and kind not in ONLY_BOYS
            name = self.r.choice(GIRLS if female else BOYS)
            if self.r.random() < 0.08:
                name = invented_name(self.r)
            if kind not in self.kinds_taken and name not in self.names_taken:
                break
        self.kinds_taken.add(kind)
        self.names_taken.add(name)
        return Character(name if named else "", kind, self.r.choice(traits), female)

    @property
    def place(self) -> str:
        return PLACES[self.going]

    @property
    def title(self) -> str:
        return f"{self.hero.name} and the {self.colour} {self.thing}"

    @property
    def text(self) -> str:
        return " ".join(self.lines)

    def say(self, *options: str) -> None:
        """Tells one of the options; the first letter becomes a capital."""
        line = self.r.choice(options)
        self.lines.append(line[0].upper() + line[1:])

    def maybe(self, *options: str) -> bool:
        """Tells one of the options if this telling is detailed enough."""
        told = self.r.random() < self.detail
        if told:
            self.say(*options)
        return told

    def ask(self, texts: list[str], answer: str, key: str) -> None:
        answer = answer[0].upper() + answer[1:]
        self.questions.append([Question(t[0].upper() + t[1:], answer, key) for t in texts])


# ---- sentences that several plots share ----------------------------------------------------


def introduce_hero(t: Tale) -> None:
    h = t.hero
    t.say(f"Once upon a time there was {h.described} named {h.name}.",
          f"Once upon a time, {h.described} named {h.name} lived in a faraway land.",
          f"There once was {h.described} called {h.name}.",
          f"{h.name} was {h.described}.",
          f"Long ago, there was {h.described} whose name was {h.name}.")
    t.ask(["Who is the story about?", "Who is the hero?", "Who was the hero of the story?",
           "Who is the main character?", "What was the hero's name?", "Who is it about?",
           f"What was the {h.kind} called?", f"What is the name of the {h.kind}?",
           f"What was the {h.kind}'s name?", f"Who is the {h.kind}?"],
          f"The story is about {h.name}, {h.described}.", h.name)
    kinds = ["Who is {n}?", "What is {n}?", "Who was {n}?", "Tell me about {n}."]
    if h.kind in ANIMALS + RARE_ANIMALS:
        kinds += ["What kind of animal is {n}?", "What animal is {n}?",
                  "What kind of animal was {n}?", "What animal was the hero?"]
    t.ask([k.format(n=h.name) for k in kinds], f"{h.name} is {h.described}.", h.kind)
    home = t.r.choice(HOMES)
    live = [f"Where did {h.name} live?", f"Where does {h.name} live?", f"Where did {h.he} live?",
            f"Where was {h.name}'s home?"]
    if t.maybe(f"{h.he} lived {home}.", f"{h.name} lived {home}."):
        t.ask(live, f"{h.name} lived {home}.", home)
    else:
        t.ask(live, "The story does not say.", "not say")
    other = t.r.choice([k for k in ANIMALS if k != h.kind])
    t.ask([f"Is {h.name} {a(other)}?", f"Was {h.name} {a(other)}?"],
          f"No, {h.name} is {h.described}.", h.kind)
    t.ask([f"Is {h.name} {a(h.kind)}?", f"Was {h.name} {a(h.kind)}?"],
          f"Yes, {h.name} is {h.described}.", "Yes")
    t.ask([f"How old was {h.name}?", f"What did {h.name}'s mother say?",
           f"Does {h.name} have a brother?", f"What is {h.name}'s favourite song?"],
          "The story does not say.", "not say")


def ask_thing(t: Tale) -> None:
    """The questions about the object, in every plot."""
    h, thing, colour = t.hero, t.thing, t.colour
    t.ask([f"What colour was the {thing}?", f"What color was the {thing}?",
           f"What colour is the {thing}?", f"What color was {h.name}'s {thing}?",
           f"Which colour was the {thing}?", f"And what colour was the {thing}?"],
          f"The {thing} was {colour}.", colour)
    other = t.r.choice([c for c in COLOURS if c != colour])
    t.ask([f"Was the {thing} {other}?", f"Is the {thing} {other}?"],
          f"No, the {thing} was {colour}.", colour)
    t.ask([f"Was the {thing} {colour}?", f"Is the {thing} {colour}?"],
          f"Yes, the {thing} was {colour}.", "Yes")
    first, second = t.r.sample([colour, other], 2)
    t.ask([f"Was the {thing} {first} or {second}?"], f"The {thing} was {colour}.", colour)
    t.ask(["What is the title of the story?", "What is the story called?",
           "Give the story a title.", "What would be a good title?"],
          f'The story is called "{t.title}".', t.title)


def go(t: Tale, *sentences: str) -> None:
    """The hero goes to the place of the story, on a day that may have a weather."""
    h = t.hero
    if t.r.random() < 0.6:
        day = f"One {t.weather} day, "
        t.ask(["What was the weather like?", "How was the weather?", "What kind of day was it?"],
              f"It was a {t.weather} day.", t.weather)
    else:
        day = t.r.choice(["One day, ", "One morning, ", "Then one day, "])
    t.say(*[day + s for s in sentences])
    t.ask(["Where did the story happen?", "Where did it happen?", "Where were they?",
           "Where does the story take place?", f"Where did {h.name} go?", f"Where did {h.he} go?",
           "Where was it?", f"Where was {h.name}?"],
          f"It happened {t.place}.", t.place)


def meet_helper(t: Tale) -> None:
    p = t.helper
    named = f" named {p.name}" if p.name else ""
    t.say(f"Then {p.described}{named} came by.", f"Just then, {p.described}{named} came along.",
          f"Soon {h_met(t)} met {p.described}{named}.",
          f"After a while, {p.described}{named} walked up to {t.hero.him}.")
    ask_helper(t)


def h_met(t: Tale) -> str:
    return t.r.choice([t.hero.name, t.hero.he])


def ask_helper(t: Tale) -> None:
    h, p = t.hero, t.helper
    key = p.name or p.kind
    t.ask([f"Who helped {h.name}?", f"Who helped {h.him}?", f"Who helped the {h.kind}?",
           "Who was the helper?", "Who came to help?", f"And who helped {h.name}?",
           "Who helped?"],
          f"{p.introduced} helped {h.name}.", key)
    named = [f"What was the {p.kind} called?", f"What was the {p.kind}'s name?",
             f"What is the name of the {p.kind}?"]
    if p.name:
        kinds = [f"Who is {p.name}?", f"Who was {p.name}?", f"What is {p.name}?"]
        if p.kind in ANIMALS + RARE_ANIMALS:
            kinds += [f"What kind of animal was {p.name}?", f"What animal is {p.name}?"]
        t.ask(kinds, f"{p.name} is {p.described}.", p.kind)
        t.ask(named, f"The {p.kind} was called {p.name}.", p.name)
    else:
        t.ask(named, "The story does not say.", "not say")


def share_food(t: Tale) -> None:
    h, p, food = t.hero, t.helper, t.r.choice(FOODS)
    if t.maybe(f"To say thank you, {h.name} shared some {food} with {p.who}.",
               f"Then they went home and ate {food} together.",
               f"In the evening, {h.name} and {p.who} ate {food}."):
        t.ask(["What did they eat?", "What did they eat together?", "What did they share?",
               f"What did {h.name} eat?", "What food did they have?"],
              f"They ate {food}.", food)


def finish(t: Tale, lesson: str) -> None:
    h, p = t.hero, t.helper
    t.say(f"From that day on, {h.name} and {p.who} were best friends.",
          f"{h.name} smiled and went home happy.",
          f"And {h.name} and {p.who} lived happily ever after.",
          f"That night, {h.name} fell asleep with a smile.",
          f"{h.name} never forgot {p.who}.")
    end = t.lines[-1]
    t.ask(["How did the story end?", "How does the story end?", "What happened at the end?",
           "What happened in the end?"], end, end)
    if t.maybe(f"{h.he} had learned that {lesson}.", f"{h.name} learned that {lesson}."):
        t.ask([f"What did {h.name} learn?", f"What did {h.he} learn?",
               "What is the moral of the story?", "What is the lesson?"],
              f"{h.name} learned that {lesson}.", lesson)
    t.ask(["What happened next?", "And then?", "What happens next?", "Go on.", "Then what?",
           "Continue the story."],
          f"The next day, {h.name} and {p.who} met again {t.place} and played with the {t.thing}.",
          h.name)
    t.ask(["What was the story about?", "Can you summarise the story?", "Summarize the story.",
           "Tell me the story in one sentence.", "Give me a short summary."],
          t.summary, h.name)
