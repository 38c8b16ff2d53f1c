"""The plots: eight ways for a story to go, told over the words and characters of `tale.py`."""

import random

from tale import (
    ANIMALS, BOYS, COLOURS, FOODS, GIRLS, OBJECTS, PLACES, RARE_OBJECTS, SPOTS, Tale, a,
    ask_thing, finish, go, introduce_hero, invented_name, many, meet_helper, share_food)


def lost_thing(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    t.topic = t.r.choice([f"a lost {thing}", "something that gets lost"])
    t.summary = f"{h.name} lost {h.his} {it} {t.place}, and {p.who} helped to find it."
    introduce_hero(t)
    t.say(f"{h.he} had {a(it)} and loved it very much.",
          f"{h.his} favourite thing was {a(it)}.",
          f"For {h.his} birthday, {h.he} got {a(it)}.")
    go(t, f"{h.name} took the {thing} {t.going}.", f"{h.he} went {t.going} with the {thing}.")
    reason, why = t.r.choice([
        ("a strong wind came and blew it away", "A strong wind blew it away."),
        (f"{h.he} put it down to chase a butterfly, and then it was gone",
         f"{h.name} put it down to chase a butterfly."),
        (f"{h.he} fell asleep, and when {h.he} woke up it was gone", f"{h.name} fell asleep."),
        ("a cheeky magpie came and took it", "A cheeky magpie took it.")])
    t.say(f"But {reason}.", f"Suddenly {reason}." if "wind" in reason or "magpie" in reason
          else f"But there {reason}.")
    t.ask([f"How did {h.name} lose the {thing}?", f"How did the {thing} get lost?",
           f"Why was the {thing} gone?", f"What happened to the {thing}?"], why, why)
    t.say(f"{h.name} was very sad.", f"{h.he} began to cry.", f"{h.name} looked everywhere.")
    t.ask([f"Why was {h.name} sad?", f"Why was {h.he} sad?", "What was the problem?"],
          f"{h.name} was sad because the {it} was gone.", thing)
    t.ask([f"What did {h.name} lose?", f"What did {h.he} lose?", "What was lost?",
           f"What did {h.name} have?", f"What was {h.name} looking for?"],
          f"{h.name} lost {h.his} {it}.", it)
    t.ask(["What did they find?", "What was found?"], f"They found the {it}.", it)
    meet_helper(t)
    t.maybe(f'"What is wrong?" asked {p.who}. "I have lost my {thing}," said {h.name}.',
            f'"Why are you sad?" asked {p.who}. "My {thing} is gone," said {h.name}.')
    t.maybe(f'"Let us look together," said {p.who}.', f'"I will help you," said {p.who}.')
    spot = t.r.choice(SPOTS)
    t.say(f"They searched and searched, and {p.who} found the {thing} {spot}.",
          f"At last they found the {thing} {spot}.", f"{p.who} saw the {thing} {spot}.")
    t.ask([f"Where was the {thing}?", f"Where did they find the {thing}?", "Where did they find it?",
           f"Where was {h.name}'s {thing} found?"],
          f"The {thing} was {spot}.", spot)
    t.maybe(f"{h.name} was so happy that {h.he} danced.", f'"Thank you!" said {h.name}.')
    share_food(t)
    finish(t, t.r.choice(["friends help each other", "it is good to ask for help"]))


def found_thing(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    owner = t.character(["sad", "tired", "worried"], named=True)
    t.topic = t.r.choice([f"somebody who finds a {thing}", "being honest"])
    t.summary = f"{h.name} found {a(it)} {t.place} and gave it back to {owner.name}."
    introduce_hero(t)
    go(t, f"{h.name} was walking {t.place}.", f"{h.he} went for a walk {t.place}.")
    spot = t.r.choice(SPOTS)
    t.say(f"There, {spot}, {h.he} found {a(it)}.", f"{h.he} saw {a(it)} {spot}.",
          f"{spot}, there was {a(it)}.")
    t.ask([f"What did {h.name} find?", f"What did {h.he} find?", "What was found?",
           f"What did the {h.kind} find?", "What did they find?"],
          f"{h.name} found {a(it)}.", it)
    t.ask([f"Where was the {thing}?", f"Where did {h.name} find the {thing}?",
           f"Where did {h.he} find it?"], f"The {thing} was {spot}.", spot)
    t.maybe(f'"Whose {thing} is this?" {h.he} wondered.', f"It was not {h.his} {thing}.")
    meet_helper(t)
    t.say(f'"That {thing} belongs to {owner.name} the {owner.kind}," said {p.who}.',
          f'"I know this {thing}," said {p.who}. "It belongs to {owner.name} the {owner.kind}."')
    t.ask([f"Whose {thing} was it?", f"Who owned the {thing}?", f"Who lost the {thing}?",
           f"Who did the {thing} belong to?"],
          f"The {thing} belonged to {owner.name} the {owner.kind}.", owner.name)
    t.ask([f"Who is {owner.name}?", f"Who was {owner.name}?"],
          f"{owner.name} is the {owner.kind} who lost the {thing}.", owner.kind)
    t.say(f"So {h.name} took the {thing} to {owner.name}.",
          f"{h.name} ran to {owner.name} and gave the {thing} back.")
    t.ask([f"What did {h.name} do with the {thing}?", f"What did {h.he} do with it?"],
          f"{h.name} gave the {thing} back to {owner.name}.", owner.name)
    food = t.r.choice(FOODS)
    if t.maybe(f"{owner.name} was so happy that {owner.he} gave {h.him} some {food}.",
               f'"Thank you!" said {owner.name}, and gave {h.name} some {food}.'):
        t.ask([f"What did {owner.name} give {h.name}?", f"What did {h.name} get?",
               "What was the reward?", f"What did {h.he} get as a thank you?"],
              f"{owner.name} gave {h.name} some {food}.", food)
    finish(t, t.r.choice(["it feels good to be honest", "it is good to give things back"]))


def stuck_thing(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    t.topic = f"a {thing} that gets stuck"
    stuck, free = t.r.choice([
        ("in a tall tree", "climbed up and brought it down"),
        ("on a high roof", "got a ladder and brought it down"),
        ("under a heavy log", "lifted the log"), ("in deep mud", "pulled it out with a rope"),
        ("between two rocks", "pushed the rocks apart"), ("in a thorny bush", "cut the thorns")])
    t.summary = f"{h.name}'s {it} got stuck {stuck}, and {p.who} {free}."
    introduce_hero(t)
    go(t, f"{h.name} was playing with {a(it)} {t.place}.",
       f"{h.he} went {t.going} to play with {h.his} {it}.")
    t.ask([f"What did {h.name} play with?", f"What was {h.name} playing with?",
           f"What did {h.name} have?"], f"{h.name} played with {a(it)}.", it)
    t.say(f"But the {thing} got stuck {stuck}.", f"Oh no! The {thing} was stuck {stuck}.")
    t.ask([f"Where did the {thing} get stuck?", f"Where was the {thing}?",
           f"Where was the {thing} stuck?", f"What happened to the {thing}?"],
          f"The {thing} got stuck {stuck}.", stuck)
    t.say(f"{h.name} tried and tried, but {h.he} could not reach it.",
          f"{h.he} tried to get it, but it was too hard.", f"{h.name} did not know what to do.")
    t.ask([f"Why was {h.name} sad?", "What was the problem?", "What went wrong?"],
          f"The {it} was stuck {stuck}.", stuck)
    meet_helper(t)
    t.maybe(f'"Can you help me?" asked {h.name}. "Of course," said {p.who}.',
            f'"Do not worry," said {p.who}.')
    t.say(f"{p.who} {free}.", f"{p.who} thought for a moment and {free}.")
    t.ask([f"How did {p.who} help?", f"What did {p.who} do?", f"How did they get the {thing} back?"],
          f"{p.who} {free}.", free)
    t.maybe(f"{h.name} jumped for joy.", f'"Hooray!" said {h.name}.')
    share_food(t)
    finish(t, t.r.choice(["two can do more than one", "it is good to ask for help"]))


def birthday(t: Tale) -> None:
    h, p, it = t.hero, t.helper, f"{t.colour} {t.thing}"
    friend = t.character(["happy", "dear"], named=True)
    dish = t.r.choice(["a cake", "a pie", "a big soup", "some pancakes", "sweet buns"])
    missing = t.r.choice(["honey", "milk", "flour", "eggs", "butter", "apples", "sugar", "salt"])
    t.topic = t.r.choice(["a birthday", "baking", "a party", f"{dish}"])
    t.summary = (f"{h.name} made {dish} for {friend.name}'s birthday, "
                 f"and {p.who} gave {h.him} the {missing}.")
    introduce_hero(t)
    t.say(f"{h.he} wanted to make {dish} for {friend.name} the {friend.kind}, who had a birthday.",
          f"It was the birthday of {friend.name} the {friend.kind}, and {h.name} wanted to make {dish}.")
    t.ask([f"What did {h.name} want to make?", f"What did {h.he} make?", f"What did {h.name} make?",
           f"What did {h.name} bake?"], f"{h.name} made {dish}.", dish)
    t.ask(["Whose birthday was it?", "Who had a birthday?", f"Who was the {dish.split()[-1]} for?"],
          f"It was {friend.name}'s birthday.", friend.name)
    t.ask([f"Who is {friend.name}?", f"What kind of friend is {friend.name}?"],
          f"{friend.name} is the {friend.kind} who had a birthday.", friend.kind)
    t.say(f"But there was no {missing} in the kitchen.", f"But {h.he} had no {missing} left.")
    t.ask(["What was missing?", f"What did {h.name} need?", "What was the problem?",
           "What was not in the kitchen?"], f"There was no {missing}.", missing)
    go(t, f"{h.he} went {t.going} to look for some {missing}.",
       f"{h.name} walked {t.going} to find {missing}.")
    meet_helper(t)
    t.say(f'"You can have some of my {missing}," said {p.who}.',
          f"{p.who} gave {h.him} a jar of {missing}.", f"{p.who} had plenty of {missing} to share.")
    t.ask([f"What did {p.who} give {h.name}?", f"How did {p.who} help?", f"What did {p.who} do?"],
          f"{p.who} gave {h.name} some {missing}.", missing)
    t.say(f"{h.name} made {dish} and also brought {a(it)} as a gift.",
          f"Soon {dish} was ready, and {h.name} wrapped {a(it)} as a present.")
    t.ask(["What was the gift?", "What was the present?", f"What did {friend.name} get?",
           f"What did {h.name} give {friend.name}?"],
          f"The present was {a(it)}.", it)
    t.maybe(f"{friend.name} was very happy.", f'"What a lovely party!" said {friend.name}.')
    finish(t, t.r.choice(["sharing makes everybody happy", "a gift from the heart is the best gift"]))


def lost_way(t: Tale) -> None:
    h, p, it = t.hero, t.helper, f"{t.colour} {t.thing}"
    t.topic = t.r.choice(["getting lost", "somebody who gets lost"])
    t.summary = f"{h.name} got lost {t.place}, and {p.who} showed {h.him} the way home."
    introduce_hero(t)
    berry = t.r.choice(["berries", "flowers", "mushrooms", "shells", "acorns"])
    go(t, f"{h.name} went {t.going} to look for {berry}.",
       f"{h.he} walked {t.going} because {h.he} wanted to find {berry}.")
    t.ask([f"What did {h.name} look for?", f"What was {h.name} looking for?",
           f"What did {h.he} want to find?", f"Why did {h.name} go there?"],
          f"{h.name} was looking for {berry}.", berry)
    t.say(f"{h.he} carried {a(it)}.", f"{h.he} had {a(it)} with {h.him}.")
    t.ask([f"What did {h.name} carry?", f"What did {h.he} have with {h.him}?",
           f"What did {h.name} have?"], f"{h.name} had {a(it)}.", it)
    dark = t.r.choice(["it got dark", "a thick fog came", "it began to snow", "a storm came"])
    t.say(f"But {dark}, and {h.he} could not find the way home.", f"Then {dark}, and {h.name} was lost.")
    t.ask([f"Why was {h.name} lost?", f"How did {h.name} get lost?", f"Why was {h.name} afraid?",
           "What was the problem?", "What went wrong?"],
          f"{h.name} was lost because {dark}.", dark)
    t.say(f"{h.name} was afraid.", f"{h.he} sat down and cried.", f"{h.he} called for help.")
    meet_helper(t)
    t.maybe(f'"Are you lost?" asked {p.who}. "Yes," said {h.name}.',
            f'"I know the way," said {p.who}. "Follow me."')
    light = t.r.choice(["the light of the moon", "a small lamp", "the sound of the mill",
                        "the stars", "a row of white stones"])
    t.say(f"They followed {light} all the way home.", f"{p.who} showed {h.him} how to follow {light}.")
    t.ask(["What did they follow?", f"How did {h.name} get home?", "How did they find the way?",
           f"How did {p.who} help?"], f"They followed {light}.", light)
    share_food(t)
    finish(t, t.r.choice(["there is always a way home", "friends help each other"]))


def new_friend(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    t.topic = t.r.choice(["a new friend", "friendship", "two friends"])
    t.summary = f"{h.name} was lonely until {h.he} met {p.who} {t.place}."
    introduce_hero(t)
    t.say(f"{h.he} had nobody to play with and felt lonely.", f"{h.name} was lonely.",
          f"{h.he} had just moved and had no friends yet.")
    t.ask([f"How did {h.name} feel?", f"How did {h.he} feel?", f"Why was {h.name} sad?",
           "What was the problem?"], f"{h.name} felt lonely.", "lonely")
    go(t, f"{h.he} sat {t.place} with {a(it)}.", f"{h.name} took {h.his} {it} {t.going}.")
    t.ask([f"What did {h.name} have?", f"What did {h.name} take along?", f"What did {h.he} have?"],
          f"{h.name} had {a(it)}.", it)
    p.trait = t.r.choice(["friendly", "kind", "gentle"])
    meet_helper(t)
    t.say(f'"What a nice {thing}!" said {p.who}. "May I play with you?"',
          f'"Can I play with you and your {thing}?" asked {p.who}.',
          f'"I am alone too," said {p.who}. "Shall we play?"')
    t.maybe(f'"Yes, please!" said {h.name}.', f"{h.name} smiled and said yes.")
    game = t.r.choice(["hide and seek", "catch", "pirates", "a singing game", "a guessing game"])
    t.say(f"They played {game} until the sun went down.", f"They played {game} all day long.")
    t.ask(["What did they play?", "What game did they play?", "What did they do?",
           f"What did {h.name} and {p.who} do?"], f"They played {game}.", game)
    t.ask([f"Who did {h.name} meet?", f"Who became {h.name}'s friend?", f"Who did {h.he} meet?",
           "Who was the new friend?"],
          f"{h.name} met {p.introduced.rstrip(',')}.", p.name or p.kind)
    share_food(t)
    finish(t, t.r.choice(["a friend can be anywhere", "it is good to say hello"]))


def brave_hero(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    fear = t.r.choice(["the dark", "thunder", "deep water", "high places", "loud noises", "spiders"])
    t.topic = t.r.choice([f"somebody who is afraid of {fear}", "being brave", "courage"])
    t.summary = f"{h.name} was afraid of {fear}, and {p.who} helped {h.him} to be brave."
    introduce_hero(t)
    t.say(f"{h.he} was afraid of {fear}.", f"There was one problem: {h.he} was afraid of {fear}.")
    t.ask([f"What was {h.name} afraid of?", f"What was {h.he} afraid of?", "What was the problem?",
           f"What did {h.name} fear?"], f"{h.name} was afraid of {fear}.", fear)
    go(t, f"{h.name} had to go {t.going}, but {h.he} did not dare.",
       f"{h.he} wanted to go {t.going}, but {h.he} was too afraid.")
    meet_helper(t)
    t.say(f'"Take this {it}," said {p.who}. "It will make you brave."',
          f"{p.who} gave {h.him} {a(it)} to make {h.him} brave.")
    t.ask([f"What did {p.who} give {h.name}?", f"What did {h.name} get?", f"What did {h.he} get?",
           f"How did {p.who} help?", f"What made {h.name} brave?"],
          f"{p.who} gave {h.name} {a(it)}.", it)
    t.say(f"{h.name} held the {thing} and took one step, and then another.",
          f"{h.he} held the {thing} tight and went {t.going}.")
    t.maybe(f"It was not so bad after all.", f"{h.his} heart was beating fast.")
    t.say(f"Soon {h.he} was not afraid any more.", f"And {h.name} was not afraid of {fear} any more.")
    share_food(t)
    finish(t, t.r.choice(["everybody can be brave", "small steps make you brave"]))


def sharing(t: Tale) -> None:
    h, p, thing, it = t.hero, t.helper, t.thing, f"{t.colour} {t.thing}"
    rival = t.character(["young"], named=True)
    t.topic = t.r.choice(["sharing", "a quarrel", f"two friends and one {thing}"])
    t.summary = f"{h.name} and {rival.name} both wanted the {it}, and learned to share it."
    introduce_hero(t)
    go(t, f"{h.name} and {rival.name} the {rival.kind} found {a(it)} {t.place}.",
       f"{h.he} and {h.his} friend {rival.name} the {rival.kind} saw {a(it)} {t.place}.")
    t.ask(["What did they find?", f"What did {h.name} find?", "What did they both want?",
           f"What did {h.name} and {rival.name} find?"], f"They found {a(it)}.", it)
    t.ask([f"Who is {rival.name}?", f"Who was {rival.name}?"],
          f"{rival.name} is the {rival.kind} who was {h.name}'s friend.", rival.kind)
    t.ask([f"Who was {h.name}'s friend?", f"Who was with {h.name}?"],
          f"{rival.name} the {rival.kind} was {h.name}'s friend.", rival.name)
    t.say(f'"It is mine!" said {h.name}. "No, it is mine!" said {rival.name}.',
          f"Both wanted the {thing}, and they began to quarrel.")
    t.ask(["Why did they quarrel?", "What was the problem?", "Why were they angry?"],
          f"They both wanted the {it}.", it)
    meet_helper(t)
    plan, key = t.r.choice([(f'"Take turns," said {p.who}.', "They took turns."),
                            (f'"Play with it together," said {p.who}.', "They played together."),
                            (f'"Count to ten and then share it," said {p.who}.', "They shared it.")])
    t.say(plan)
    t.ask([f"What did {p.who} say?", f"How did {p.who} help?"], plan, plan)
    t.say(f"So {key[0].lower() + key[1:]}", key)
    t.ask(["What did they do?", "How did they solve it?", "How was the problem solved?"], key, key)
    t.maybe("It was much more fun than before.", "Soon they were laughing again.")
    share_food(t)
    finish(t, t.r.choice(["sharing is more fun", "a friend is worth more than a toy"]))


PLOTS = [lost_thing, found_thing, stuck_thing, birthday, lost_way, new_friend, brave_hero, sharing]


def tell(r: random.Random, detail: float) -> Tale:
    """A whole tale: its plot told and every question collected."""
    t = Tale(r, detail)
    r.choice(PLOTS)(t)
    ask_thing(t)
    return t


def request(t: Tale) -> str:
    """A wish that this tale fulfils, from "Tell me a story." to hero, object and place."""
    r, h, p = t.r, t.hero, t.helper
    fox = r.choice([a(h.kind), a(h.kind), a(f"{h.trait} {h.kind}"), f"a {h.kind} named {h.name}",
                    a(h.kind) + f" called {h.name}", h.name, h.name, f"{h.name} the {h.kind}"])
    kite = a(r.choice([t.thing, f"{t.colour} {t.thing}"]))
    about = r.choice(["", "", fox, fox, fox, kite, f"{fox} and {kite}", f"{fox} and {kite}",
                      f"{fox} with {kite}", f"{fox} {t.place}", f"{a(h.kind)} and {a(p.kind)}",
                      f"{a(h.kind)}, {a(p.kind)} and {kite}", t.topic, t.topic,
                      f"{a(h.kind)} and {t.topic}", many(h.kind), f"{many(h.kind)} and {many(p.kind)}"])
    if not about:
        return r.choice([
            "Tell me a story.", "Tell me a story.", "Tell me a short story.", "Please tell me a story.",
            "Can you tell me a story?", "I want to hear a story.", "A story, please.", "Story please.",
            "Tell a story.", "Write a story.", "Write a short story.", "Once upon a time",
            "Tell me another story.", "Another story, please.", "Could you tell me a story?",
            "Tell me something.", "Make up a story.", "I would like a bedtime story.",
            "Give me a story.", "Do you know a story?", "Tell me a fairy tale.", "Another one."])
    return r.choice(["Tell me a story about {}.", "Tell me a story about {}.",
                     "Tell me a short story about {}.", "Please tell me a story about {}.",
                     "Can you tell me a story about {}?", "Write a story about {}.",
                     "Write a short story about {}.", "A short story about {}.", "A story about {}",
                     "I want a story about {}.", "Do you know a story about {}?",
                     "Could you write a story about {}?", "Make up a story about {}.",
                     "Now tell me a story about {}.", "story about {}"]).format(about)
