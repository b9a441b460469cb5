// How the page reads server-sent events, however their bytes are cut and their lines end.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { before, test } from "node:test";

const UI = new URL("../../src/ui/", import.meta.url);

let readSse;

before(async () => {
  const { transformWithOxc } = await import(new URL("node_modules/vite/dist/node/index.js", UI));
  const source = await readFile(new URL("src/sse.ts", UI), "utf8");
  const { code } = await transformWithOxc(source, "sse.ts", { sourcemap: false });
  ({ readSse } = await import(`data:text/javascript,${encodeURIComponent(code)}`));
});

// What is read of these pieces of a body.
async function read(...pieces) {
  const encoder = new TextEncoder();
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(typeof piece === "string" ? encoder.encode(piece) : piece);
      controller.close();
    },
  });
  const items = [];
  for await (const item of readSse(body)) items.push(item);
  return items;
}

const event = (data, name = "message") => ({ kind: "event", event: name, data });
const comment = (text) => ({ kind: "comment", text });

const LINES = ["event: tick", "data: {\"a\":1}", "data: süß 🕯", "", ": x-route-target=local", "", "id: 7", "data:no space", "data", "", "data: [DONE]", "", ""];
const ITEMS = [event('{"a":1}\nsüß 🕯', "tick"), comment("x-route-target=local"), event("no space\n"), event("[DONE]")];

for (const [name, end] of [["LF", "\n"], ["CR", "\r"], ["CRLF", "\r\n"]]) {
  test(`lines that end in ${name}`, async () => {
    assert.deepEqual(await read(LINES.join(end)), ITEMS);
  });

  test(`lines that end in ${name}, cut at every byte`, async () => {
    const bytes = new TextEncoder().encode(LINES.join(end));
    for (let at = 0; at <= bytes.length; at += 1) {
      assert.deepEqual(await read(bytes.subarray(0, at), bytes.subarray(at)), ITEMS, `cut at ${at}`);
    }
    assert.deepEqual(await read(...Array.from(bytes, (byte) => Uint8Array.of(byte))), ITEMS, "each byte alone");
  });
}

test("line ends of several kinds in one body", async () => {
  assert.deepEqual(await read("data: 1\r\n\ndata: 2\r\rdata: 3\n\r\n"), [event("1"), event("2"), event("3")]);
});

test("an event without data is none, and its name is not the next one's", async () => {
  assert.deepEqual(await read("event: empty\n\ndata: 1\n\n"), [event("1")]);
});

test("only one space after the colon is no part of the value", async () => {
  assert.deepEqual(await read("data:  two\ndata: a: b\n\n"), [event(" two\na: b")]);
});

test("comments stand where they were said, also within an event", async () => {
  assert.deepEqual(await read(":\n:first\ndata: 1\n: second \ndata: 2\n\n"), [comment(""), comment("first"), comment("second"), event("1\n2")]);
});

test("what is left when the body ends is an event too", async () => {
  assert.deepEqual(await read("data: 1\n\ndata: 2"), [event("1"), event("2")]);
  assert.deepEqual(await read(": last"), [comment("last")]);
  assert.deepEqual(await read(), []);
});

test("a body that nobody reads to its end is cancelled", async () => {
  let cancelled = false;
  const body = new ReadableStream({
    pull(controller) {
      controller.enqueue(new TextEncoder().encode("data: 1\n\n"));
    },
    cancel() {
      cancelled = true;
    },
  });
  for await (const item of readSse(body)) {
    assert.deepEqual(item, event("1"));
    break;
  }
  assert.ok(cancelled);
});
