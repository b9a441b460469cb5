"""Calls every route of the server's own OpenAPI document with generated requests, good and bad ones.

usage: fuzz.py URL [OPENAI_URL]

No answer may be a server error, have a status or a content type that the document does not list, or a
body unlike the documented schema; every stream must end as its route promises; nothing may take longer
than the server's own deadline. The routes under /v1 are asked again on a server with COMPAT=openai, if
its address is given. The seed is fixed, and too few cases are a failure.
"""

import json
import sys
import tempfile

import schemathesis
from schemathesis.cli import schemathesis as command

SEED = 20
EXAMPLES = 120
LEAST_CASES = 2000
# Above the deadline that tests/clients/run gives the server.
TIMEOUT_SECONDS = 40
# Streams are read to their end, however long.
MOST_STREAM_EVENTS = 100_000
DEADLINE_HEADER = "x-route-deadline-ms"
CHECKS = [
    "no_failure_of_the_server",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "stream_ends",
]


def payloads(response):
    """The data of each event of a stream, in order."""
    text = response.content.decode()
    if not text.endswith("\n\n"):
        raise ValueError("the stream ends inside an event")
    for event in text.split("\n\n"):
        lines = [
            line.removeprefix("data: ") for line in event.split("\n") if line.startswith("data:")
        ]
        if lines:
            yield "\n".join(lines)


@schemathesis.deserializer("text/event-stream")
def deserialize_events(_context, response):
    """The schema that is documented for a stream is that of one event's JSON, as in TGI's document."""
    return [json.loads(data) for data in payloads(response) if data != "[DONE]"]


@schemathesis.check
def no_failure_of_the_server(_context, response, case):
    """No status from 500 on, but for the 504 that a caller's own deadline asks for."""
    asked = DEADLINE_HEADER in {name.lower() for name in case.headers or {}}
    assert response.status_code < 500 or (response.status_code == 504 and asked)


@schemathesis.check
def stream_ends(_context, response, case):
    """Every stream ends as its route promises, also after an error."""
    kind = response.headers.get("content-type", [""])[0]
    if response.status_code != 200 or not kind.startswith("text/event-stream"):
        return
    events = list(payloads(response))
    assert events, "the stream is empty"
    if events[-1] == "[DONE]":
        assert case.operation.path not in ("/", "/generate", "/generate_stream", "/v1/messages")
        return
    last = json.loads(events[-1])
    path = case.operation.path
    assert path not in ("/v1/chat/completions", "/v1/completions"), "there is no [DONE]"
    if path == "/v1/messages":
        assert last["type"] in ("message_stop", "error"), last
    elif path == "/v1/responses":
        ends = ("response.completed", "response.incomplete", "response.failed", "error")
        assert last["type"] in ends, last
    else:
        assert last.get("generated_text") is not None or "error" in last, last


def fuzz(url, *options):
    """Runs all cases; returns the report and whether all is well."""
    with tempfile.TemporaryDirectory() as folder:
        report = f"{folder}/report.json"
        settings = f"{folder}/schemathesis.toml"
        with open(settings, "w") as file:
            file.write(f"max-stream-events = {MOST_STREAM_EVENTS}\n")
        arguments = [
            f"--config-file={settings}",
            "run",
            f"{url}/api-doc/openapi.json",
            f"--url={url}",
            f"--seed={SEED}",
            f"--max-examples={EXAMPLES}",
            f"--request-timeout={TIMEOUT_SECONDS}",
            "--phases=examples,coverage,fuzzing",
            f"--checks={','.join(CHECKS)}",
            "--continue-on-failure",
            "--suppress-health-check=all",
            "--generation-database=none",
            "--warnings=off",
            "--no-color",
            "--report=json",
            f"--report-json-path={report}",
            *options,
        ]
        try:
            status = command.main(arguments, standalone_mode=False)
        except SystemExit as exit:
            status = exit.code
        with open(report) as file:
            return json.load(file), not status


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    runs = [fuzz(sys.argv[1])]
    if len(sys.argv) == 3:
        runs.append(fuzz(sys.argv[2], "--include-path-regex=^/v1/"))
    cases = sum((report["test_cases"] or {}).get("generated", 0) for report, _ in runs)
    routes = runs[0][0]["operations"] or {"tested": 0, "total": 0}
    print(f"fuzz: {cases} cases, {routes['tested']} of {routes['total']} routes, seed {SEED}")
    if not all(well for _, well in runs):
        sys.exit("fuzz: failed")
    if cases < LEAST_CASES or routes["tested"] < routes["total"]:
        sys.exit(f"fuzz: {LEAST_CASES} cases over all routes were wanted")


main()
