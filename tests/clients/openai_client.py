"""The official OpenAI client against a running server: what it can do without knowing Millstream.

    pip install -r requirements.txt
    python openai_client.py --url http://127.0.0.1:3000

Starts nothing and ends with the first thing that is not as the client's users expect it.
"""

import argparse
import json
import typing

import openai
import pydantic

STORY = [{"role": "user", "content": "Tell me a story about a fox and a red kite."}]




class Animal(pydantic.BaseModel, extra="forbid"):
    """What a structured answer is parsed into; bounded, so that it always ends."""

    name: typing.Literal["fox", "owl", "dog"]
    legs: typing.Literal[2, 4]
    tags: list[typing.Literal["red", "old"]] = pydantic.Field(max_length=2)


TOOL = {
    "type": "function",
    "function": {
        "name": "feed",
        "description": "Feeds an animal.",
        "parameters": {
            "type": "object",
            "properties": {"animal": {"enum": ["fox", "owl"]}, "times": {"enum": [1, 2, 3]}},
            "required": ["animal", "times"],
            "additionalProperties": False,
        },
    },
}


def models(client: openai.OpenAI) -> str:
    """The server lists its model, and knows it by name."""
    names = [model.id for model in client.models.list()]
    assert len(names) == 1, names
    assert client.models.retrieve(names[0]).id == names[0]
    return names[0]


def chat(client: openai.OpenAI, model: str) -> None:
    """An answer in one piece."""
    answer = client.chat.completions.create(model=model, messages=STORY, max_tokens=24, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, answer
    assert choice.finish_reason in ("stop", "length"), answer
    assert answer.usage.completion_tokens <= 24, answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def chat_streamed(client: openai.OpenAI, model: str) -> None:
    """The same answer in pieces, with its usage at the end."""
    arguments = dict(model=model, messages=STORY, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**arguments).choices[0]
    text, reasons, usage = "", [], None
    with client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            assert chunk.object == "chat.completion.chunk", chunk
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            if chunk.usage:
                assert not chunk.choices, "the usage comes in a chunk of its own"
                usage = chunk.usage
    assert text == whole.message.content, (text, whole)
    assert reasons == [whole.finish_reason], reasons
    assert usage and 0 < usage.completion_tokens <= 24, usage


def chat_options(client: openai.OpenAI, model: str) -> None:
    """Several choices, stop strings, log-probabilities, a seed."""
    arguments = dict(model=model, messages=STORY, max_tokens=16, temperature=0.8, seed=7)
    both = client.chat.completions.create(**arguments, n=2, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in both.choices] == [0, 1]
    for choice in both.choices:
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in choice.logprobs.content)
        assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content)
    again = client.chat.completions.create(**arguments)
    assert again.choices[0].message.content == both.choices[0].message.content

    text = both.choices[0].message.content
    stop = text[len(text) // 2]
    stopped = client.chat.completions.create(**arguments, stop=[stop]).choices[0]
    assert stopped.message.content == text[: text.index(stop)], (stopped, stop)
    assert stopped.finish_reason == "stop"


def structured(client: openai.OpenAI, model: str) -> None:
    """Answers in a form: a schema (parsed by the client), any object, a stream, a vLLM extension."""
    arguments = dict(model=model, messages=STORY, max_tokens=200, temperature=1, seed=5)
    parsed = client.chat.completions.parse(**arguments, response_format=Animal, n=2)
    for choice in parsed.choices:
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Animal), choice

    schema = {"type": "json_schema", "json_schema": {"name": "animal", "schema": Animal.model_json_schema()}}
    whole = client.chat.completions.create(**arguments, response_format=schema, logprobs=True)
    with client.chat.completions.create(**arguments, response_format=schema, stream=True) as stream:
        text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    Animal.model_validate_json(text)

    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    answer = client.chat.completions.create(**arguments, extra_body=choice)
    assert answer.choices[0].message.content in ("yes", "no"), answer
    answer = client.completions.create(
        model=model, prompt="The year", max_tokens=20, extra_body={"guided_regex": "[0-9]{4}"}
    )
    assert len(answer.choices[0].text) == 4 and int(answer.choices[0].text) >= 0, answer


def tools(client: openai.OpenAI, model: str) -> None:
    """Calls of tools: required and named, whole and streamed, several; and how the talk goes on."""
    arguments = dict(model=model, messages=STORY, tools=[TOOL], max_tokens=200, temperature=1, seed=5)
    required = client.chat.completions.create(**arguments, tool_choice="required", parallel_tool_calls=False)
    choice = required.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id and call.function.name == "feed", call
    given = json.loads(call.function.arguments)
    assert given["animal"] in ("fox", "owl") and given["times"] in (1, 2, 3), given

    named = {"type": "function", "function": {"name": "feed"}}
    answer = client.chat.completions.create(**arguments, tool_choice=named)
    assert answer.choices[0].message.tool_calls[0].function.name == "feed", answer

    parts, names, reasons = {}, {}, []
    with client.chat.completions.create(
        **arguments, tool_choice="required", parallel_tool_calls=False, stream=True
    ) as stream:
        for chunk in stream:
            for part in chunk.choices:
                assert not part.delta.content, part
                reasons += [part.finish_reason] if part.finish_reason else []
                for delta in part.delta.tool_calls or []:
                    if delta.id:
                        names[delta.index] = delta.function.name
                    parts[delta.index] = parts.get(delta.index, "") + (delta.function.arguments or "")
    assert names == {0: "feed"} and reasons == ["tool_calls"], (names, reasons)
    assert json.loads(parts[0]) == given, (parts, given)

    talk = STORY + [choice.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    client.chat.completions.create(model=model, messages=talk, max_tokens=4)


def completions(client: openai.OpenAI, model: str) -> None:
    """Text that goes on: whole, streamed, and several prompts at once."""
    arguments = dict(model=model, max_tokens=12, temperature=0)
    one = client.completions.create(**arguments, prompt="Once upon a time")
    assert one.choices[0].text and one.usage.completion_tokens <= 12, one
    with client.completions.create(**arguments, prompt="Once upon a time", stream=True) as stream:
        text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert text == one.choices[0].text, (text, one)
    two = client.completions.create(**arguments, prompt=["Once upon a time", "The fox"])
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == text

    scored = client.completions.create(model=model, prompt="Once upon a time", max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == "Once upon a time" and scored.usage.completion_tokens == 0, scored
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == "Once upon a time", logprobs


def errors(client: openai.OpenAI, model: str) -> None:
    """What is wrong raises the class that says so."""

    def expect(error: type, **changes) -> openai.APIStatusError:
        arguments = dict(model=model, messages=STORY, max_tokens=4) | changes
        try:
            client.chat.completions.create(**arguments)
        except error as raised:
            return raised
        raise AssertionError(f"no {error.__name__} for {changes}")

    assert "no-such-model" in str(expect(openai.NotFoundError, model="no-such-model"))
    assert "temperature" in str(expect(openai.BadRequestError, temperature=-1))
    assert expect(openai.BadRequestError, max_tokens=0).param == "max_tokens"
    expect(openai.BadRequestError, messages=[])
    impossible = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}
    assert "thing" in str(expect(openai.BadRequestError, response_format=impossible))
    nameless = {"type": "function", "function": {"name": "no spaces"}}
    assert "name" in expect(openai.BadRequestError, tools=[nameless]).param
    try:
        client.models.retrieve("no-such-model")
    except openai.NotFoundError:
        return
    raise AssertionError("no NotFoundError for a model that is not served")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="server to ask")
    parser.add_argument("--api-key", default="none", help="key to send")
    args = parser.parse_args()
    # No retries: what fails once is what is looked for.
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key=args.api_key, max_retries=0, timeout=120)
    model = models(client)
    for check in (chat, chat_streamed, chat_options, structured, tools, completions, errors):
        check(client, model)
        print(f"ok  {check.__name__}: {check.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
