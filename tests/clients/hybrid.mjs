// Node's official clients at a server that forwards, and at a full one that may not; run by
// `tests/clients/run hybrid`. What a client sent is counted by the servers.

import assert from "node:assert/strict";
import { test } from "node:test";
import { InferenceClient } from "@huggingface/inference";
import OpenAI from "openai";
import { FACT, QUESTION, address } from "./support.mjs";

const CHAT = [{ role: "user", content: QUESTION }];
const GREEDY = { temperature: 0, max_tokens: 40 };
const fact = new RegExp(FACT);

const near = address("SCONCE_NEAR_URL");
const far = address("SCONCE_FAR_URL");
const full = address("SCONCE_DENIED_URL");
const places = Number(address("SCONCE_DENIED_PLACES"));

async function metric(url, name) {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split("\n").find((line) => line.startsWith(`${name} `));
  return Number(line.split(" ").at(-1));
}

const refusals = () => metric(full, 'tgi_request_failure{err="overloaded"}');

// Runs `call` while every place is taken: who ends an answer asks for the next one at once.
async function held(call) {
  const leave = new AbortController();
  const begun = [];
  const hold = async (first) => {
    while (!leave.signal.aborted) {
      try {
        const answer = await fetch(`${full}/generate_stream`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            inputs: "Once upon a time",
            parameters: { temperature: 100, max_new_tokens: 300 },
          }),
          signal: leave.signal,
        });
        for await (const chunk of answer.body) if (answer.ok && chunk) first();
      } catch {
        // Left.
      }
    }
  };
  const holders = Array.from({ length: places }, () => {
    let first;
    begun.push(new Promise((resolve) => (first = resolve)));
    return hold(first);
  });
  await Promise.all(begun);
  try {
    return await call();
  } finally {
    leave.abort();
    await Promise.all(holders);
  }
}

// The error of a call at the full server, how often it was asked, and how long it took. A place is free for a
// moment when an answer ends, so a call may slip in.
async function refused(call) {
  for (let attempt = 0; attempt < 10; attempt++) {
    const outcome = await held(async () => {
      const before = await refusals();
      const began = performance.now();
      try {
        await call();
        return undefined;
      } catch (error) {
        return { error, asked: (await refusals()) - before, took: performance.now() - began };
      }
    });
    if (outcome) return outcome;
  }
  assert.fail("10 calls at a full server, and none was refused");
}

test("@huggingface/inference asks a full server once", async () => {
  const client = new InferenceClient("", { endpointUrl: full });
  const { error, asked } = await refused(() => client.chatCompletion({ messages: CHAT, ...GREEDY }));
  assert.equal(error.httpResponse.status, 429);
  assert.match(error.message, /Model is overloaded/);
  assert.equal(asked, 1);
  const stream = await refused(async () => {
    for await (const _ of client.chatCompletionStream({ messages: CHAT, ...GREEDY }));
  });
  assert.equal(stream.asked, 1);
});

test("openai asks a full server three times, a second apart at least, and gives up", async () => {
  const client = new OpenAI({ baseURL: `${full}/v1`, apiKey: "-", timeout: 60_000 });
  const { error, asked, took } = await refused(() =>
    client.chat.completions.create({ model: "tgi", messages: CHAT, ...GREEDY }),
  );
  assert.ok(error instanceof OpenAI.RateLimitError, String(error));
  assert.ok(Number(error.headers.get("retry-after")) >= 1);
  assert.equal(asked, 3);
  assert.ok(took >= 2000, `${took} ms`);
});

test("@huggingface/inference through another server", async () => {
  const calls = async (endpointUrl) => {
    const client = new InferenceClient("", { endpointUrl });
    const whole = await client.chatCompletion({ messages: CHAT, ...GREEDY });
    let streamed = "";
    for await (const chunk of client.chatCompletionStream({ messages: CHAT, ...GREEDY })) {
      streamed += chunk.choices[0].delta.content ?? "";
    }
    return [whole.choices[0].message.content, whole.usage, streamed];
  };
  const before = await metric(far, "tgi_request_success");
  const answers = await calls(near);
  assert.equal((await metric(far, "tgi_request_success")) - before, 2);
  assert.deepEqual(answers, await calls(far));
  assert.match(answers[0], fact);
  assert.equal(answers[2], answers[0]);
});

test("openai through another server", async () => {
  const calls = async (url) => {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", timeout: 60_000, maxRetries: 0 });
    const asks = { model: "tgi", messages: CHAT, ...GREEDY };
    const { data, response } = await client.chat.completions.create(asks).withResponse();
    let streamed = "";
    for await (const chunk of await client.chat.completions.create({ ...asks, stream: true })) {
      streamed += chunk.choices[0].delta.content ?? "";
    }
    return [response.headers.get("x-route-target"), data.choices, data.usage, streamed];
  };
  const [target, ...answers] = await calls(near);
  const [none, ...expected] = await calls(far);
  assert.equal(target, "remote");
  assert.equal(none, null);
  assert.deepEqual(answers, expected);
  assert.match(answers[2], fact);
});
