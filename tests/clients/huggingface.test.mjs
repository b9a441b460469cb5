// The `@huggingface/inference` package, pointed at an endpoint as its documentation shows.

import assert from "node:assert/strict";
import { test } from "node:test";
import { InferenceClient, InferenceClientProviderApiError } from "@huggingface/inference";
import { FACT, QUESTION, READING, WEATHER, address, checkReading, checkWeather, refusedBusy } from "./support.mjs";

const CHAT = [{ role: "user", content: QUESTION }];
const GREEDY = { temperature: 0, max_tokens: 40 };
const fact = new RegExp(FACT);

// Without `model` the package sends its endpoint's address as the model's name.
const client = new InferenceClient("", { endpointUrl: address("SCONCE_URL") });

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

test("chat", async () => {
  const answer = await client.chatCompletion({ messages: CHAT, ...GREEDY });
  assert.match(answer.choices[0].message.content, fact);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("chat with the endpoint's /v1 address, a token and a model's name", async () => {
  const other = new InferenceClient("hf_something").endpoint(`${address("SCONCE_URL")}/v1`);
  const answer = await other.chatCompletion({ model: "any-name", messages: CHAT, ...GREEDY });
  assert.match(answer.choices[0].message.content, fact);
});

test("chat as a stream", async () => {
  const whole = await client.chatCompletion({ messages: CHAT, ...GREEDY });
  const chunks = await collect(client.chatCompletionStream({ messages: CHAT, ...GREEDY }));
  assert.equal(
    chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
    whole.choices[0].message.content,
  );
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

test("a stream is left", async () => {
  for await (const chunk of client.chatCompletionStream({ messages: CHAT, temperature: 2, max_tokens: 500 })) {
    assert.ok(chunk.choices);
    break;
  }
  assert.ok(await client.chatCompletion({ messages: CHAT, ...GREEDY }));
});

test("tools", async () => {
  for (const tool_choice of ["required", "get_weather", { type: "function", function: { name: "get_weather" } }]) {
    const answer = await client.chatCompletion({
      messages: CHAT,
      tools: [WEATHER],
      tool_choice,
      temperature: 0,
      max_tokens: 200,
    });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    checkWeather(JSON.parse(call.function.arguments));
  }
});

test("tools as a stream", async () => {
  const chunks = await collect(
    client.chatCompletionStream({
      messages: CHAT,
      tools: [WEATHER],
      tool_choice: "required",
      temperature: 0,
      max_tokens: 200,
    }),
  );
  const calls = chunks.flatMap((chunk) => chunk.choices[0].delta.tool_calls ?? []);
  assert.equal(calls[0].function.name, "get_weather");
  checkWeather(JSON.parse(calls.map((call) => call.function.arguments ?? "").join("")));
});

test("structured output, in both spellings", async () => {
  for (const response_format of [
    { type: "json_schema", json_schema: { name: "reading", schema: READING } },
    { type: "json", value: READING },
  ]) {
    const answer = await client.chatCompletion({
      messages: CHAT,
      response_format,
      temperature: 0,
      max_tokens: 200,
    });
    checkReading(JSON.parse(answer.choices[0].message.content));
  }
});

test("text generation", async () => {
  const answer = await client.textGeneration({
    inputs: QUESTION,
    parameters: { max_new_tokens: 40, temperature: 0 },
  });
  assert.match(answer.generated_text, fact);
  const chunks = await collect(
    client.textGenerationStream({ inputs: QUESTION, parameters: { max_new_tokens: 40, temperature: 0 } }),
  );
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), answer.generated_text);
});

test("errors carry the server's words", async () => {
  await assert.rejects(client.chatCompletion({ messages: CHAT, temperature: -1 }), (error) => {
    assert.ok(error instanceof InferenceClientProviderApiError);
    assert.match(error.message, /`temperature` must be strictly positive/);
    assert.equal(error.httpResponse.status, 422);
    return true;
  });
  await assert.rejects(collect(client.chatCompletionStream({ messages: CHAT, temperature: -1 })), (error) => {
    assert.ok(error instanceof InferenceClientProviderApiError);
    assert.match(error.message, /`temperature` must be strictly positive/);
    return true;
  });
});

test("keys", async () => {
  const endpointUrl = address("SCONCE_LOCKED_URL");
  await assert.rejects(
    new InferenceClient("", { endpointUrl }).chatCompletion({ messages: CHAT, ...GREEDY }),
    (error) => error.httpResponse.status === 401,
  );
  const keyed = new InferenceClient(process.env.SCONCE_LOCKED_KEY, { endpointUrl });
  assert.ok(await keyed.chatCompletion({ messages: CHAT, ...GREEDY }));
});

test("a full server", async () => {
  const endpointUrl = address("SCONCE_SINGLE_URL");
  const single = new InferenceClient("", { endpointUrl });
  const error = await refusedBusy(endpointUrl, () => single.chatCompletion({ messages: CHAT, ...GREEDY }));
  assert.equal(error.httpResponse.status, 429);
  assert.match(error.message, /Model is overloaded/);
});
