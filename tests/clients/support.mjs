// What the tests of Node's clients share. The servers are started by tests/clients/run.

import assert from "node:assert/strict";

export const QUESTION = "What is the capital of France?";
export const FACT = "Paris";

export function address(variable) {
  assert.ok(process.env[variable], `${variable} is not set: start the tests with tests/clients/run`);
  return process.env[variable];
}

// Values that a grammar bounds, so that any model fills them in.
export const READING = {
  type: "object",
  properties: {
    city: { type: "string", enum: ["Paris", "Rome"] },
    sunny: { type: "boolean" },
  },
  required: ["city", "sunny"],
  additionalProperties: false,
};

export function checkReading(value) {
  assert.deepEqual(Object.keys(value).sort(), ["city", "sunny"]);
  assert.ok(["Paris", "Rome"].includes(value.city));
  assert.equal(typeof value.sunny, "boolean");
}

export const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Says what the weather is like.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

export function checkWeather(value) {
  assert.deepEqual(Object.keys(value), ["city"]);
  assert.ok(["Paris", "Rome"].includes(value.city));
}

// The error of a call beside a running one, on a server that serves one request at a time. The running
// answer lasts a fraction of a second, so on a machine that pauses it may be over too early.
export async function refusedBusy(url, call) {
  for (let attempt = 0; attempt < 20; attempt++) {
    const leave = new AbortController();
    // A caller that left a moment ago is noticed at the next step.
    await new Promise((resolve) => setTimeout(resolve, 50));
    const running = await fetch(`${url}/generate_stream`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        inputs: "Once upon a time",
        parameters: { temperature: 100, max_new_tokens: 1000 },
      }),
      signal: leave.signal,
    });
    await running.body.getReader().read();
    try {
      await call();
    } catch (error) {
      return error;
    } finally {
      leave.abort();
    }
  }
  assert.fail("20 calls beside a running one, and none was refused");
}
