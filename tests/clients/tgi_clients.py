"""The clients of TGI against a running server: huggingface_hub and text-generation, unchanged.

    pip install -r requirements.txt
    python tgi_clients.py --url http://127.0.0.1:3000

Starts nothing and ends with the first thing that is not as the clients' users expect it.
"""

import argparse
import json

import huggingface_hub.errors
import text_generation
import text_generation.errors
import text_generation.types
from huggingface_hub import InferenceClient

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "What is 3 + 4?"}]

# Bounded, so that an answer always ends.
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "owl"]}, "times": {"enum": [1, 2, 3]}},
    "required": ["animal", "times"],
    "additionalProperties": False,
}


def check_fits(text: str) -> None:
    """Whether a text is a document of the schema."""
    document = json.loads(text)
    assert document["animal"] in ("fox", "owl") and document["times"] in (1, 2, 3), text
    assert len(document) == 2, text



def joined(tokens) -> str:
    """What the tokens that are not special add, one after the other."""
    return "".join(token.text for token in tokens if not token.special)


def hub_text(client: InferenceClient) -> None:
    """A text, with and without the prompt before it, and what is told of its tokens."""
    full = client.text_generation(PROMPT, max_new_tokens=12)
    own = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert full == PROMPT + own and own, (full, own)
    arguments = dict(max_new_tokens=12, details=True, top_n_tokens=2, return_full_text=False)
    told = client.text_generation(PROMPT, **arguments)
    assert told.generated_text == own == joined(told.details.tokens), told
    assert all(len(top) == 2 for top in told.details.top_tokens), told
    stop = own[len(own) // 2]
    stopped = client.text_generation(PROMPT, stop=[stop], **arguments)
    assert stopped.generated_text == own[: own.index(stop) + 1], (stopped, stop)
    assert stopped.details.finish_reason == "stop_sequence", stopped


def hub_stream(client: InferenceClient) -> None:
    """The same text, token by token; the last event has all of it."""
    arguments = dict(max_new_tokens=12, return_full_text=False)
    own = client.text_generation(PROMPT, **arguments)
    assert "".join(client.text_generation(PROMPT, stream=True, **arguments)) == own
    events = list(client.text_generation(PROMPT, stream=True, details=True, **arguments))
    assert joined(event.token for event in events) == own, events
    assert [event.index for event in events] == list(range(1, len(events) + 1)), events
    assert events[-1].generated_text == own, events[-1]
    assert events[-1].details.generated_tokens == len(events), events[-1]


def hub_best_of(client: InferenceClient) -> None:
    """The likeliest of three, and the others."""
    arguments = dict(max_new_tokens=8, details=True, return_full_text=False, temperature=1.2)
    answer = client.text_generation(PROMPT, best_of=3, do_sample=True, **arguments).details

    def mean(tokens) -> float:
        return sum(token.logprob for token in tokens) / len(tokens)

    assert len(answer.best_of_sequences) == 2, answer
    others = [mean(sequence.tokens) for sequence in answer.best_of_sequences]
    assert mean(answer.tokens) >= max(others), answer


def hub_chat(client: InferenceClient) -> None:
    """A chat with a client that knows a URL and no model."""
    whole = client.chat_completion(CHAT, max_tokens=20, temperature=0).choices[0].message.content
    stream = client.chat_completion(CHAT, max_tokens=20, temperature=0, stream=True)
    assert whole and whole == "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def hub_structured(client: InferenceClient) -> None:
    """A text and a chat in a form, in TGI's words and in OpenAI's."""
    grammar = {"type": "json", "value": SCHEMA}
    arguments = dict(do_sample=True, seed=5, return_full_text=False)
    check_fits(client.text_generation(PROMPT, max_new_tokens=200, grammar=grammar, **arguments))
    named = {"type": "json_schema", "json_schema": {"name": "meal", "schema": SCHEMA, "strict": True}}
    for form in (grammar, named):
        answer = client.chat_completion(CHAT, max_tokens=200, seed=5, response_format=form)
        check_fits(answer.choices[0].message.content)


def hub_tools(client: InferenceClient) -> None:
    """A call of a tool, whole and streamed."""
    tool = {"type": "function", "function": {"name": "feed", "description": "Feeds.", "parameters": SCHEMA}}
    arguments = dict(max_tokens=200, seed=5, tools=[tool], tool_choice="required")
    choice = client.chat_completion(CHAT, **arguments).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    for call in choice.message.tool_calls:
        assert call.function.name == "feed", call
        check_fits(call.function.arguments)
    parts = [""] * len(choice.message.tool_calls)
    for chunk in client.chat_completion(CHAT, stream=True, **arguments):
        for call in chunk.choices[0].delta.tool_calls or []:
            parts[call["index"] if isinstance(call, dict) else call.index] += call.function.arguments
    for part in parts:
        check_fits(part)


def hub_errors(client: InferenceClient) -> None:
    """What is wrong raises the class that says so, also where a stream was asked for."""
    for arguments in [
        dict(temperature=-1),
        dict(watermark=True),
        dict(best_of=2),
        dict(max_new_tokens=10**6),
        dict(temperature=-1, stream=True),
    ]:
        try:
            answer = client.text_generation(PROMPT, **arguments)
            list(answer)
        except huggingface_hub.errors.ValidationError as error:
            assert any(name in str(error) for name in arguments), (arguments, error)
            continue
        raise AssertionError(f"no ValidationError for {arguments}")


def text_generation_client(client: text_generation.Client) -> None:
    """TGI's own client: whole, streamed, in a form, the best of two, and an error."""
    whole = client.generate(PROMPT, max_new_tokens=12)
    assert whole.generated_text == joined(whole.details.tokens), whole
    assert whole.details.finish_reason.value == "length", whole
    events = list(client.generate_stream(PROMPT, max_new_tokens=12))
    assert joined(event.token for event in events) == whole.generated_text
    assert events[-1].generated_text == whole.generated_text
    grammar = text_generation.types.Grammar(type="regex", value="(fox|owl){2}")
    held = client.generate(PROMPT, max_new_tokens=20, grammar=grammar).generated_text
    assert held in ("foxfox", "foxowl", "owlfox", "owlowl"), held
    best = client.generate(PROMPT, max_new_tokens=8, do_sample=True, best_of=2)
    assert len(best.details.best_of_sequences) == 1, best
    try:
        client.generate(PROMPT, max_new_tokens=10**6)
    except text_generation.errors.ValidationError as error:
        assert "max_new_tokens" in str(error)
        return
    raise AssertionError("no ValidationError for too many tokens")


HUB = (hub_text, hub_stream, hub_best_of, hub_chat, hub_structured, hub_tools, hub_errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the server, as http://HOST:PORT")
    url = parser.parse_args().url
    hub = InferenceClient(url)
    checks = [(check, hub) for check in HUB]
    checks.append((text_generation_client, text_generation.Client(url)))
    for check, client in checks:
        check(client)
        print(f"ok  {check.__name__}: {check.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
