"""Schemathesis against a running server: what /openapi.json promises, on requests made from it.

    pip install -r requirements.txt
    python schema_test.py --url http://127.0.0.1:3000

Requests follow the document and break it; those that break it must be refused. No answer may be a
5xx, have a status or a content type that is not documented, or a body, an event or a header that
does not match its schema. Every run makes the same requests. Starts nothing; the exit code is
Schemathesis's own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
]

# This is /invocations under another name, and either has a quarter of all requests.
TWIN = "/vertex"

# So that a request costs a small model in a debug build milliseconds.
MOST_TOKENS = 4
MOST_CHOICES = 2
COUNTS = {"n": MOST_CHOICES, "best_of": MOST_CHOICES, "min_tokens": MOST_TOKENS}
LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


def bound(fields: object, limit: str) -> None:
    """Lowers counts of tokens and choices; `limit` is the field that has to be there."""
    if not isinstance(fields, dict):
        return
    if fields.get(limit) is None:
        fields[limit] = MOST_TOKENS
    for name, most in COUNTS.items() | {(name, MOST_TOKENS) for name in LIMITS}:
        if isinstance(fields.get(name), (int, float)):
            fields[name] = min(fields[name], most)


def bound_body(body: object) -> None:
    """The same for the body of any route that generates, which also asks for what is served."""
    if not isinstance(body, dict):
        return
    # A name that is made up ends in a 404, and nothing else is looked at.
    if isinstance(body.get("model"), str):
        body["model"] = "tgi"
    if "messages" in body or "prompt" in body:
        bound(body, "max_tokens")
    if "inputs" in body or "instances" in body:
        if body.get("parameters") is None:
            body["parameters"] = {}
        bound(body["parameters"], "max_new_tokens")
    instances = body.get("instances")
    for instance in instances if isinstance(instances, list) else []:
        bound_body(instance)


def events(text: str) -> list:
    """The payloads of server-sent events, `[DONE]` left out."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def register_hooks() -> None:
    """What Schemathesis has to know of this server."""
    import schemathesis

    @schemathesis.hook
    def before_call(_context, case, **_kwargs):
        bound_body(case.body)

    @schemathesis.deserializer("text/event-stream")
    def read_events(_context, response):
        return events(response.content.decode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="server to ask")
    parser.add_argument("--max-examples", default="20", help="random requests for each route")
    args = parser.parse_args()
    here = Path(__file__).resolve()
    command = [
        Path(sys.executable).absolute().with_name("schemathesis"), "run", f"{args.url}/openapi.json",
        "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing",
        "--max-examples", args.max_examples, "--workers", "1", "--generation-deterministic",
        "--no-shrink", "--continue-on-failure", "--request-timeout", "30", "--warnings", "off",
        "--no-color", "--exclude-path", TWIN,
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": here.stem, "PYTHONPATH": str(here.parent)}
    # It leaves files where it runs.
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
else:
    register_hooks()
