"""LangChain's OpenAI chat model against a running server.

    pip install -r requirements.txt
    python langchain_client.py --url http://127.0.0.1:3000
"""

import argparse
import typing

import openai
import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

STORY = [HumanMessage("Tell me a story about a fox and a red kite.")]


class Animal(pydantic.BaseModel):
    """An animal; bounded, so that it always ends."""

    name: typing.Literal["fox", "owl", "dog"]
    legs: typing.Literal[2, 4]


@tool
def feed(animal: typing.Literal["fox", "owl"], times: typing.Literal[1, 2]) -> str:
    """Feeds an animal."""
    return f"fed the {animal} {times} times"


def chat(model: ChatOpenAI) -> None:
    """An answer, with its usage."""
    answer = model.invoke(STORY)
    assert answer.content and answer.usage_metadata["output_tokens"] <= 128, answer


def stream(model: ChatOpenAI) -> None:
    """The same answer in pieces."""
    whole = model.invoke(STORY, temperature=0)
    pieces = [chunk.content for chunk in model.stream(STORY, temperature=0)]
    assert len(pieces) > 2 and "".join(pieces) == whole.content, (pieces, whole)


def structured(model: ChatOpenAI) -> None:
    """An answer in a form, parsed by the client."""
    animal = model.with_structured_output(Animal, method="json_schema").invoke(STORY)
    assert isinstance(animal, Animal), animal


def tools(model: ChatOpenAI) -> None:
    """A tool that must be called, and the talk that goes on with its result."""
    bound = model.bind_tools([feed], tool_choice="required", parallel_tool_calls=False, strict=True)
    answer = bound.invoke(STORY)
    (call,) = answer.tool_calls
    result = feed.invoke(call["args"])
    assert call["name"] == "feed" and result.startswith("fed the"), call
    talk = STORY + [answer, ToolMessage(result, tool_call_id=call["id"])]
    assert model.invoke(talk) is not None
    streamed = None
    for chunk in bound.stream(STORY):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["name"] for call in streamed.tool_calls] == ["feed"], streamed


def errors(model: ChatOpenAI) -> None:
    """What is wrong raises the class that says so."""
    try:
        model.invoke(STORY, temperature=-1)
    except openai.BadRequestError as error:
        assert "temperature" in str(error), error
        return
    raise AssertionError("no BadRequestError for a temperature below 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="server to ask")
    args = parser.parse_args()
    model = ChatOpenAI(
        base_url=f"{args.url}/v1", api_key="none", model="tgi", max_tokens=128, seed=5, max_retries=0, timeout=120
    )
    for check in (chat, stream, structured, tools, errors):
        check(model)
        print(f"ok  {check.__name__}: {check.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
