"""How good the demo model is, on fresh stories and fresh typing mistakes.

The sums, the intents and most phrasings are those of the training text: it is a small world.

    pip install transformers jinja2      # on top of what train.py needs
    python evaluate.py --model model

Loads the five files as anybody would, through `transformers`, renders with the chat template, and
prints one table: all one-digit sums, questions about fresh stories, every small-talk intent,
refusals; greedy and at the settings of generation_config.json. First it checks that the files
compute what train.py's own model computes.
"""

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import stories
import talk
import train

HELD_OUT_SEED = 987_654_321
FIRST_WORDS = [
    "Hello", "Hi!", "Who are you?", "What is Millstream?", "Say this is a test", "Tell me a joke",
    "What is the capital of France?", "Write a haiku", "What is 7 + 8?", "9-4", "three plus four",
    "How do I serve a real model?", "What is 12 * 12?", "Explain quantum computing in simple terms",
    "Tell me a story about a fox and a red kite.", "a short story about Mia and a red kite",
    "Write a python function that reverses a string", "I feel sad today", "thanks, bye!"]


class Asker:
    """The loaded model, and how to ask it many questions at once."""

    def __init__(self, path: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def ask(self, chats: list[list[dict]], sample: bool, limit: int = 64) -> list[str]:
        """The answers to chats; batched by similar length, because padding costs time."""
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = [""] * len(texts)
        for start in range(0, len(order), 64):
            part = order[start:start + 64]
            batch = self.tokenizer([texts[i] for i in part], return_tensors="pt", padding=True,
                                   add_special_tokens=False)
            batch.pop("token_type_ids", None)
            # Without sampling the sampling settings would only be warned about.
            settings = {} if sample else dict(do_sample=False, temperature=None, top_p=None)
            with torch.no_grad():
                out = self.model.generate(**batch, max_new_tokens=limit, **settings)
            for i, row in zip(part, out[:, batch["input_ids"].shape[1]:]):
                answers[i] = self.tokenizer.decode(row, skip_special_tokens=True)
        return answers


def user(text: str) -> dict:
    return dict(role="user", content=text)


def check_parity(asker: Asker, path: Path) -> None:
    """Our Llama and Hugging Face's give the same logits for the same files."""
    ours = train.Llama(train.Config())
    weights = load_file(path / "model.safetensors")
    ours.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    ids = asker.tokenizer("Once upon a time there was a little fox named Mia.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        difference = (ours.head(ours(ids)) - asker.model(ids).logits).abs().max().item()
    print(f"largest logit difference to train.py: {difference:.1e}")
    assert difference < 1e-4


def sum_cases(r: random.Random) -> list[tuple]:
    cases = []
    for x in range(10):
        for y in range(10):
            for sign in "+-":
                t = talk.sum_of(r, x, y, sign)
                cases.append(([user(t.user)], t.key, f"sums a {sign} b"))
    return cases


def story_cases(r: random.Random, num_stories: int) -> list[tuple]:
    """Three questions in a row about each story; earlier answers are given, so each counts alone."""
    cases = []
    for _ in range(num_stories):
        tale = stories.tell(r, r.random())
        chat = [user(stories.request(tale)), dict(role="assistant", content=tale.text)]
        for same in r.sample(tale.questions, 3):
            q = r.choice(same)
            chat = chat + [user(talk.rough(r, q.text))]
            cases.append((chat, q.key, "story questions"))
            chat = chat + [dict(role="assistant", content=q.answer)]
    return cases


def talk_cases(r: random.Random) -> list[tuple]:
    cases = []
    for name, (_, answers) in talk.INTENTS.items():
        for _ in range(5):
            cases.append(([user(talk.intent(r, name).user)], tuple(answers), "small talk"))
    for draw, kind in [(talk.out_of_world, "out of world"), (talk.too_hard_sum, "too hard sums")]:
        for _ in range(150):
            t = draw(r)
            cases.append(([user(t.user)], t.key, kind))
    words = stories.COLOURS + stories.OBJECTS + stories.ANIMALS
    for _ in range(100):
        t = talk.echo(r, words)
        cases.append(([user(t.user)], t.key, "echo"))
    return cases


def obeyed(r: random.Random, asker: Asker, sample: bool) -> tuple[int, int]:
    """How often a told story has the hero, kind and object that were asked for."""
    wishes = []
    for _ in range(100):
        t = stories.tell(r, 1.0)
        wishes.append((t, [user(f"Tell me a story about {stories.a(t.hero.kind)} named {t.hero.name} "
                                f"and {stories.a(t.colour + ' ' + t.thing)}.")]))
    told = asker.ask([c for _, c in wishes], sample, limit=280)
    good = sum(all(w in s for w in (t.hero.name, t.hero.kind, f"{t.colour} {t.thing}"))
               for (t, _), s in zip(wishes, told))
    return good, len(wishes)


def right(answer: str, key) -> bool:
    keys = key if isinstance(key, tuple) else (key,)
    return any(k.lower() in answer.lower() for k in keys)


def measure(asker: Asker, sample: bool, num_stories: int, show_wrong: int) -> None:
    r = random.Random(HELD_OUT_SEED)
    torch.manual_seed(1)
    cases = sum_cases(r) + story_cases(r, num_stories) + talk_cases(r)
    answers = asker.ask([c for c, _, _ in cases], sample)
    print(f"\n| {'sampled' if sample else 'greedy'} | right | of | % |\n|---|---|---|---|")
    for kind in dict.fromkeys(k for _, _, k in cases):
        results = [right(a, key) for a, (_, key, k) in zip(answers, cases) if k == kind]
        print(f"| {kind} | {sum(results)} | {len(results)} | {100 * sum(results) / len(results):.1f} |")
    good, total = obeyed(r, asker, sample)
    print(f"| hero, kind, object as asked | {good} | {total} | {100 * good / total:.1f} |")
    wrong = [(c, key, a) for a, (c, key, _) in zip(answers, cases) if not right(a, key)]
    for chat, key, answer in random.Random(2).sample(wrong, min(show_wrong, len(wrong))):
        print(f"wrong: {chat[-1]['content']!r} -> {answer!r}, expected {key!r}")


def samples(asker: Asker) -> None:
    torch.manual_seed(3)
    print()
    for text, answer in zip(FIRST_WORDS, asker.ask([[user(t)] for t in FIRST_WORDS], True, 280)):
        print(f"user: {text}\n  -> {answer}")
    chat = [dict(role="system", content="You are a helpful assistant.")]
    print("\na conversation:")
    for text in ["Hi!", "Tell me a story about a fox named Ruby and a blue kite", "Who helped Ruby?",
                 "what color was the kite?", "Where did it happen?", "What did they eat?",
                 "How did it end?", "Thank you! What is 4 + 5?", "Tell me another one", "who is the hero?"]:
        chat.append(user(text))
        answer = asker.ask([chat], True, 280)[0]
        chat.append(dict(role="assistant", content=answer))
        print(f"user: {text}\n  -> {answer}")
    for start in ["Once upon a time", "Mia was a little fox"]:
        ids = asker.tokenizer(start, return_tensors="pt")["input_ids"]
        out = asker.model.generate(ids, max_new_tokens=250)
        print(f"completion of {start!r}:\n  -> {asker.tokenizer.decode(out[0])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--stories", type=int, default=250)
    parser.add_argument("--only", choices=["greedy", "sampled"], help="one table instead of both")
    parser.add_argument("--show-wrong", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(2)
    asker = Asker(args.model)
    check_parity(asker, args.model)
    samples(asker)
    for sample in (False, True):
        if args.only in (None, "sampled" if sample else "greedy"):
            measure(asker, sample, args.stories, args.show_wrong)


if __name__ == "__main__":
    main()
