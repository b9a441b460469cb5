#!/usr/bin/env python3
"""A step in the load: does this machine keep busy, keep its objective, and spill no more than it must?

    benches/overflow.py                          # target/release/sconce, some three minutes
    benches/overflow.py --seconds 20 --loads 0.5,1.5,3 --json

Starts `sconce serve` on the embedded model with one computing thread and few slots, and behind it an upstream in
a process of its own that paces made-up tokens by a clock, so that it takes no time of this machine's to speak of.
First the capacity is measured by callers who wait for each answer (and may not be forwarded), then callers come at
random moments, whoever waits, at the given multiples of it. Nothing but Python's standard library is needed.

Prompts and answers are log-uniform. How long an answer gets is not to be known to the server: every caller asks
for as much as fits, and with a stop string at which its answer will end. Tokens are drawn at a temperature that
makes all of them alike, with a seed, so that what a prompt and a seed give is known from a first run, and a stop
string can be cut out of it at any length.

What is decided is read from the server's decision log, what a caller sees from the callers' own clocks. The
machine should have nothing else to do: with one thread computing, one more CPU is for callers and server.
"""

import argparse
import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

# Tokens of prompts and answers, log-uniform. The embedded model's context is 1024.
PROMPT = (16, 160)
ANSWER = (16, 800)
MAX_NEW = 800
# Different prompts, each with its seed. Their blocks exceed the KV cache many times over, so that a prompt that
# comes again does not find itself cached.
POOL = 160
KV_TOKENS = 4096
# Forecasts below this are of the order of what the wire takes; the error of longer ones is what is promised.
SHORT_MS = 25


# ---- the wire ----


async def request(address, path, body=None, headers=()):
    """Sends one request; yields the head as a dictionary, then the body as it comes."""
    host, port = address
    reader, writer = await asyncio.open_connection(host, port)
    try:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
            f"host: {host}:{port}",
            "connection: close",
            "content-type: application/json",
            f"content-length: {len(data)}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        yield int(head[0].split()[1]), fields
        while chunk := await reader.read(1 << 16):
            yield chunk
    finally:
        writer.close()


async def whole(address, path, body=None, headers=()):
    """One request and its answer as JSON, framing taken off."""
    head, parts = None, []
    async for part in request(address, path, body, headers):
        if head is None:
            head = part
        else:
            parts.append(part)
    data = b"".join(parts)
    if head[1].get("transfer-encoding") == "chunked":
        data = unchunked(data)
    if head[0] != 200:
        sys.exit(f"overflow: {path} answered {head[0]}: {data[:300]!r}")
    return json.loads(data)


def unchunked(data):
    out, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if size == 0:
            return b"".join(out)
        out.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


# ---- the upstream ----


async def upstream(first_ms, tokens, token_ms):
    """Speaks TGI's dialect: a first token after a while, and some more in even steps."""

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                text = head.decode("latin-1").lower()
                length = 0
                for line in text.split("\r\n"):
                    if line.startswith("content-length:"):
                        length = int(line.split(":")[1])
                await reader.readexactly(length)
                if text.startswith("post "):
                    await answer(writer, chat="/chat/" in text.split("\r\n")[0])
                    return
                body = b"{}" if text.startswith("get /health") else b'{"model_id":"far"}'
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (len(body), body)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(writer, chat):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        for index in range(1, tokens + 1):
            # Tokens come in bursts, as they do over a network.
            if index % 8 == 1:
                await asyncio.sleep((first_ms if index == 1 else 8 * token_ms) / 1000)
            event = (chat_event if chat else generate_event)(index, tokens)
            writer.write(f"data:{json.dumps(event)}\n\n".encode())
            if chat and index == tokens:
                writer.write(b"data: [DONE]\n\n")
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def generate_event(index, tokens):
    event = {
        "index": index,
        "token": {"id": 5, "text": " far", "logprob": -1.0, "special": False},
        "generated_text": None,
        "details": None,
    }
    if index == tokens:
        event["generated_text"] = " far" * tokens
        event["details"] = {
            "finish_reason": "eos_token",
            "generated_tokens": tokens,
            "input_length": 10,
            "seed": None,
        }
    return event


def chat_event(index, tokens):
    last = index == tokens
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": " far"},
        "logprobs": None,
        "finish_reason": "stop" if last else None,
    }
    event = {"object": "chat.completion.chunk", "id": "", "created": 1, "model": "far", "choices": [choice]}
    if last:
        event["usage"] = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
    return event


# ---- the server ----


class Server:
    """`sconce serve` on a free port; leaves nothing behind."""

    def __init__(self, binary, folder, name, arguments):
        self.log = os.path.join(folder, f"{name}.log")
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [binary, "serve", "--port", "0", "--json-output", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=keep,
            )
        for _ in range(600):
            for line in open(self.log):
                if '"Connected"' in line:
                    host, port = json.loads(line)["address"].rsplit(":", 1)
                    self.address = (host, int(port))
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        sys.exit(f"overflow: the server did not start:\n{open(self.log).read()}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def settings(folder, port, slo_ms):
    path = os.path.join(folder, "overflow.toml")
    log = os.path.join(folder, "decisions.jsonl")
    with open(path, "w") as file:
        file.write(
            f"""
[remote]
state_dir = {json.dumps(os.path.join(folder, "state"))}
# The upstream takes whatever comes from the first request on.
[remote.adaptive]
start = 256
max = 512
[[remote.upstream]]
name = "paced"
kind = "tgi"
base_url = "http://127.0.0.1:{port}"
billing = "own"
max_concurrency = 512
[[remote.target]]
name = "far"
upstream = "paced"
model = "far"
[[route.model]]
name = "default"
local = true
targets = ["far"]
[[route.model]]
name = "elsewhere"
local = false
targets = ["far"]
[route]
slo_ttft_ms = {slo_ms}
decision_log = {json.dumps(log)}
decision_log_bytes = 1073741824
[egress]
anonymous = "dedicated"
"""
        )
    return path, log


# ---- callers ----


def log_uniform(draw, bounds):
    low, high = (math.log(bound) for bound in bounds)
    return round(math.exp(draw.uniform(low, high)))


def prompt(draw, tokens):
    """Words that begin unlike any other prompt's; some three characters make a token."""
    words = "time house water light green river small paper stone music night story".split()
    text = f"{draw.randrange(10**6)}"
    while len(text) < 2.6 * tokens:
        text += " " + draw.choice(words)
    return text


async def make_pool(address, draw):
    """Prompts with their seeds and the texts of the tokens that they give."""
    pool = []

    async def one(seed):
        inputs = prompt(draw, log_uniform(draw, PROMPT))
        body = {
            "inputs": inputs,
            "parameters": {
                "max_new_tokens": MAX_NEW,
                "temperature": 100.0,
                "seed": seed,
                "details": True,
            },
        }
        details = (await whole(address, "/generate", body))["details"]
        pool.append((inputs, seed, [token["text"] for token in details["tokens"]]))

    todo = list(range(1, POOL + 1))

    async def worker():
        while todo:
            await one(todo.pop())

    await asyncio.gather(*(worker() for _ in range(16)))
    return pool


def stop_at(texts, length):
    """A string that the answer has first at its token of this number, or a little later."""
    ends, at = [], 0
    for text in texts:
        at += len(text)
        ends.append(at)
    answer = "".join(texts)
    for place in range(min(length, len(texts)) - 1, len(texts)):
        if not texts[place] or "\ufffd" in texts[place]:
            continue
        end = ends[place]
        for size in range(4, 25):
            stop = answer[end - size : end] if end >= size else ""
            if stop and "\ufffd" not in stop and answer.find(stop) == end - size:
                return stop
    return None


def draw_body(draw, pool):
    inputs, seed, texts = draw.choice(pool)
    parameters = {"max_new_tokens": MAX_NEW, "temperature": 100.0, "seed": seed, "details": True}
    stop = stop_at(texts, log_uniform(draw, ANSWER))
    if stop:
        parameters["stop"] = [stop]
    return {"inputs": inputs, "parameters": parameters}


class Call:
    """What became of one request, by the caller's clock."""

    def __init__(self, phase):
        self.phase = phase
        self.at = time.time()
        self.ttft_ms = self.e2e_ms = self.tokens = None
        self.side = self.id = self.reason = None
        self.failed = None

    async def make(self, address, body, headers=()):
        began = time.monotonic()
        tail = b""
        head = None
        try:
            async for part in request(address, "/generate_stream", body, headers):
                if head is None:
                    head = part
                    self.side = head[1].get("x-route-target")
                    self.id = head[1].get("x-route-request-id")
                    self.reason = head[1].get("x-route-reason")
                    if head[0] != 200:
                        self.failed = head[0]
                    continue
                if self.ttft_ms is None and b"data:" in part:
                    self.ttft_ms = (time.monotonic() - began) * 1000
                tail = (tail + part)[-4096:]
        except (OSError, asyncio.IncompleteReadError) as problem:
            self.failed = repr(problem)
        self.e2e_ms = (time.monotonic() - began) * 1000
        if self.failed is None and b'"generated_tokens":' not in tail:
            self.failed = tail[-300:].decode("utf-8", "replace")
        if self.failed is None:
            number = tail.rsplit(b'"generated_tokens":', 1)[1]
            self.tokens = int(number.split(b",", 1)[0].split(b"}", 1)[0])
        return self


async def closed_loop(address, pool, draw, callers, seconds):
    """Requests and tokens a second that this machine can do alone."""
    end = time.monotonic() + seconds
    done = []

    async def caller():
        while time.monotonic() < end:
            call = Call("capacity")
            await call.make(address, draw_body(draw, pool), [("x-route-policy", "local-only")])
            done.append(call)

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(callers)))
    took = time.monotonic() - began
    bad = [call.failed for call in done if call.failed]
    if bad:
        sys.exit(f"overflow: {len(bad)} of {len(done)} calls failed: {bad[0]}")
    return len(done) / took, sum(call.tokens for call in done) / took


async def open_loop(address, pool, draw, phase, rate, seconds):
    """Callers at random moments, whoever waits."""
    calls, tasks = [], []
    began = time.monotonic()
    due = 0.0
    while due < seconds:
        # Bodies are made ahead of their time.
        body = draw_body(draw, pool)
        due += draw.expovariate(rate)
        wait = began + due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        call = Call(phase)
        calls.append(call)
        tasks.append(asyncio.create_task(call.make(address, body)))
    late = time.monotonic() - began - due
    return calls, tasks, late


# ---- what came of it ----


def quantile(values, share):
    values = sorted(values)
    return values[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def is_full(local):
    return local["running"] + local["waiting"] >= local["max_running"]


def has_room(local):
    """As the decision has it: a place and memory are free at once."""
    free = local["waiting"] == 0 and local["running"] < local["max_running"]
    return free and not local["queue_full"] and local["kv_needed"] <= local["kv_free"]


def went_away(record):
    return record["decision"]["outcome"] == "remote"


def forecast_ms(record):
    forecast = record["local"]["forecast"]
    return None if forecast is None else forecast["ttft_ms"]


def share(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else float("nan")


def multiple(phase):
    """A phase's load as a multiple of the capacity."""
    return float(phase.rstrip("x"))


def judge(phases, calls, records, slo_ms):
    """One dictionary for each phase, and one for the whole run."""
    known = {record["request_id"]: record for record in records}
    # In the order in which the callers came.
    pairs = [(call, known[call.id]) for call in calls if call.id in known]
    rows = []
    for name in phases:
        mine = [pair for pair in pairs if pair[0].phase == name]
        here = [pair for pair in mine if pair[0].side == "local"]
        away = [pair for pair in mine if pair[0].side == "remote"]
        firsts = [call.ttft_ms for call, _ in here if call.ttft_ms]
        ratios = [
            call.ttft_ms / forecast_ms(record)
            for call, record in here
            if call.ttft_ms and (forecast_ms(record) or 0) >= SHORT_MS
        ]
        after = [record for call, record in mine if away and call.at >= away[0][0].at]
        rows.append(
            {
                "load": name,
                "requests": sum(1 for call in calls if call.phase == name),
                "failed": sum(1 for call in calls if call.phase == name and call.failed),
                "local": len(here),
                "remote": len(away),
                "ttft_local_p50_ms": quantile(firsts, 0.5),
                "ttft_local_p95_ms": quantile(firsts, 0.95),
                "ttft_all_p95_ms": quantile([c.ttft_ms for c, _ in mine if c.ttft_ms], 0.95),
                "full": share(is_full(record["local"]) for _, record in mine),
                "full_after_first_spill": share(is_full(record["local"]) for record in after),
                "forecasts": len(ratios),
                "ratio_p25": quantile(ratios, 0.25),
                "ratio_p50": quantile(ratios, 0.5),
                "ratio_p75": quantile(ratios, 0.75),
            }
        )
    away = [record for _, record in pairs if went_away(record)]
    # Arrivals come at random moments, so the share of them that finds all places taken is the share of time. What
    # spills before the load's step, out of a burst that nobody could serve in time, is counted by its phase.
    before = []
    above = [call.at for call, record in pairs if went_away(record) and multiple(call.phase) > 1.0]
    if above:
        first = above[0]
        span = max(slo_ms / 1000, 1.0)
        before = [record for call, record in pairs if first - span <= call.at < first]
    after = (record["decision"]["diverting_after"] for record in records)
    switches = sorted({state["changed_ms"] for state in after if state["changed_ms"] is not None})
    gaps = [later - earlier for earlier, later in zip(switches, switches[1:])]
    local = [(c, r) for c, r in pairs if c.side == "local" and c.ttft_ms]
    ratios = [c.ttft_ms / f for c, r in local if (f := forecast_ms(r) or 0) >= SHORT_MS]
    needless = [r for r in away if has_room(r["local"]) and (forecast_ms(r) or 0) <= slo_ms]
    below = [r for r in away if not is_full(r["local"]) and r["local"]["kv_needed"] <= r["local"]["kv_free"]]
    # Who is answered elsewhere after so long has waited here before.
    moved = sum(1 for c, _ in pairs if c.side == "remote" and (c.ttft_ms or 0) >= slo_ms)
    return rows, {
        "records": len(records),
        "unmatched": sum(1 for call in calls if call.id not in known),
        "spilled": len(away),
        "moved_while_waiting": moved,
        "spilled_with_room": len(needless),
        "spilled_below_capacity": len(below),
        "arrivals_before_first_spill": len(before),
        "full_before_first_spill": share(is_full(r["local"]) for r in before),
        "ttft_local_p95_ms": quantile([c.ttft_ms for c, _ in local], 0.95),
        "ttft_all_p95_ms": quantile([c.ttft_ms for c, _ in pairs if c.ttft_ms], 0.95),
        "slo_ms": slo_ms,
        "switches": len(switches),
        "least_between_switches_ms": min(gaps) if gaps else None,
        "forecasts": len(ratios),
        "ratio_p25": quantile(ratios, 0.25),
        "ratio_p50": quantile(ratios, 0.5),
        "ratio_p75": quantile(ratios, 0.75),
        "reasons": {
            reason: sum(1 for c, _ in pairs if c.reason == reason)
            for reason in sorted({c.reason or "none" for c, _ in pairs})
        },
    }


def verdicts(rows, total, slo_ms):
    """What is promised, and whether it holds."""
    calm = [row for row in rows if multiple(row["load"]) <= 0.7]
    busy = [row for row in rows if multiple(row["load"]) > 1.0]
    return [
        ("every request was answered", all(row["failed"] == 0 for row in rows)),
        ("every request has its record", total["unmatched"] == 0),
        ("a load above capacity spills", all(row["remote"] > 0 for row in busy)),
        ("a load below 0.7 of capacity spills less than 1 %",
         all(row["remote"] < 0.01 * row["requests"] for row in calm)),
        ("none spilled with a place and memory free and a forecast within the objective",
         total["spilled_with_room"] == 0),
        ("at least 95 % full before the first spill", total["full_before_first_spill"] >= 0.95),
        ("at least 95 % full from the first spill on, above capacity",
         all(row["full_after_first_spill"] >= 0.95 for row in busy)),
        (f"p95 to the first token within {slo_ms} ms", total["ttft_all_p95_ms"] <= slo_ms),
        ("at most one switch a minute",
         (total["least_between_switches_ms"] or 60_000) >= 60_000),
        ("median of actual to forecast within 0.7 to 1.4", 0.7 <= total["ratio_p50"] <= 1.4),
    ]


async def run(arguments, folder, port):
    draw = random.Random(arguments.seed)
    others = os.getloadavg()[0]
    say = lambda text: print(text, file=sys.stderr, flush=True)
    tool = Server(arguments.binary, folder, "pool", ["--max-batch-size", "16"])
    try:
        say("overflow: what prompts and seeds give")
        pool = await make_pool(tool.address, draw)
    finally:
        tool.stop()
    config, log = settings(folder, port, arguments.slo_ms)
    near = Server(
        arguments.binary,
        folder,
        "near",
        [
            *("--config", config),
            *("--cpu-threads", "1"),
            *("--max-batch-size", str(arguments.slots)),
            *("--max-batch-total-tokens", str(KV_TOKENS)),
            *("--max-concurrent-requests", "4096"),
        ],
    )
    try:
        # How fast the upstream is shows only in answers of it.
        chat = {"model": "elsewhere", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
        for _ in range(12):
            await whole(near.address, "/v1/chat/completions", chat)
        callers = 2 * arguments.slots
        await closed_loop(near.address, pool, draw, callers, 2)
        requests, tokens = await closed_loop(near.address, pool, draw, callers, arguments.measure)
        say(f"overflow: capacity {requests:.1f} requests and {tokens:.0f} tokens a second")
        calls, tasks, phases, lateness = [], [], [], 0.0
        for load in arguments.loads:
            name = f"{load:g}x"
            say(f"overflow: {name} for {arguments.seconds} s")
            phases.append(name)
            more, running, late = await open_loop(
                near.address, pool, draw, name, load * requests, arguments.seconds
            )
            calls += more
            tasks += running
            lateness = max(lateness, late)
        await asyncio.gather(*tasks)
    finally:
        near.stop()
    records = [json.loads(line) for line in open(log)]
    if not records:
        sys.exit("overflow: the decision log is empty")
    rows, total = judge(phases, calls, records, arguments.slo_ms)
    total["capacity_requests_per_s"] = requests
    total["capacity_tokens_per_s"] = tokens
    total["callers_late_s"] = lateness
    # What else this machine had to do: above zero the figures are of a busy machine.
    total["load_average_before"] = others
    if arguments.keep:
        with open(arguments.keep, "w") as file:
            for call in calls:
                file.write(json.dumps(vars(call)) + "\n")
        with open(arguments.keep + ".decisions", "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return rows, total


def show(rows, total, slo_ms):
    print("| load | requests | local | remote | failed | ttft p50 | p95 | all p95 | full | after spill | forecasts | ratio p25 | p50 | p75 |")
    print("|---" * 14 + "|")
    for row in rows:
        print(
            f"| {row['load']} | {row['requests']} | {row['local']} | {row['remote']} | {row['failed']} "
            f"| {row['ttft_local_p50_ms']:.0f} | {row['ttft_local_p95_ms']:.0f} | {row['ttft_all_p95_ms']:.0f} "
            f"| {row['full']:.3f} | {row['full_after_first_spill']:.3f} | {row['forecasts']} "
            f"| {row['ratio_p25']:.2f} | {row['ratio_p50']:.2f} | {row['ratio_p75']:.2f} |"
        )
    print()
    for key, value in total.items():
        print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
    print()
    for promise, holds in verdicts(rows, total, slo_ms):
        print(f"{'ok  ' if holds else 'FAIL'} {promise}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser.add_argument("--binary", default=os.path.join(target, "release", "sconce"))
    parser.add_argument("--slots", type=int, default=4, help="sequences that run at once")
    parser.add_argument("--slo-ms", type=int, default=600, help="the objective of the first token")
    parser.add_argument("--loads", default="0.5,1.3,2", help="multiples of the capacity, in turn")
    parser.add_argument("--seconds", type=float, default=40, help="for each load")
    parser.add_argument("--measure", type=float, default=8, help="seconds to measure the capacity")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", metavar="FILE", help="what each caller saw, and beside it the decisions")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        asyncio.run(upstream(first_ms=30, tokens=24, token_ms=0.5))
        return
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("overflow: ended"))
    arguments.loads = [float(load) for load in arguments.loads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        far = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--upstream"], stdout=subprocess.PIPE, text=True
        )
        try:
            port = int(far.stdout.readline())
            rows, total = asyncio.run(run(arguments, folder, port))
        finally:
            far.terminate()
            far.wait()
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        print(json.dumps(total))
        print(json.dumps(dict(verdicts(rows, total, arguments.slo_ms))))
    else:
        show(rows, total, arguments.slo_ms)
    if not all(holds for _, holds in verdicts(rows, total, arguments.slo_ms)):
        sys.exit(1)


if __name__ == "__main__":
    main()
