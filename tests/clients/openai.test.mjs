// The `openai` package for Node: chat, streams, tools, structured outputs, responses, errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { FACT, QUESTION, READING, WEATHER, address, checkReading, checkWeather, refusedBusy } from "./support.mjs";

const CHAT = [{ role: "user", content: QUESTION }];
const GREEDY = { model: "tgi", temperature: 0, max_tokens: 40 };

const connect = (url, options = {}) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "-", timeout: 60_000, maxRetries: 0, ...options });

const tgi = connect(address("SCONCE_URL"));
const strict = connect(address("SCONCE_OPENAI_URL"));

for (const [mode, client] of Object.entries({ tgi, openai: strict })) {
  test(`${mode}: chat`, async () => {
    const answer = await client.chat.completions.create({ messages: CHAT, ...GREEDY });
    assert.equal(answer.object, "chat.completion");
    const [choice] = answer.choices;
    assert.match(choice.message.content, new RegExp(FACT));
    assert.equal(choice.message.role, "assistant");
    assert.equal(choice.finish_reason, "stop");
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
  });

  test(`${mode}: chat as a stream`, async () => {
    const whole = await client.chat.completions.create({ messages: CHAT, ...GREEDY });
    const stream = await client.chat.completions.create({
      messages: CHAT,
      stream: true,
      stream_options: { include_usage: true },
      ...GREEDY,
    });
    let text = "";
    let usage;
    const reasons = [];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      if (chunk.choices[0]?.finish_reason) reasons.push(chunk.choices[0].finish_reason);
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(reasons, ["stop"]);
    assert.equal(usage.total_tokens, whole.usage.total_tokens);
  });

  test(`${mode}: a stream is left`, async () => {
    const stream = await client.chat.completions.create({
      model: "tgi",
      messages: CHAT,
      temperature: 2,
      max_tokens: 500,
      stream: true,
    });
    for await (const chunk of stream) {
      assert.ok(chunk.choices);
      break;
    }
    assert.ok((await client.chat.completions.create({ messages: CHAT, ...GREEDY })).choices.length);
  });

  test(`${mode}: the stream helper accumulates`, async () => {
    const stream = client.chat.completions.stream({ messages: CHAT, ...GREEDY });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const final = await stream.finalChatCompletion();
    assert.match(text, new RegExp(FACT));
    assert.equal(final.choices[0].message.content, text);
  });

  test(`${mode}: several choices, log-probabilities, stop`, async () => {
    const answer = await client.chat.completions.create({
      messages: CHAT,
      n: 2,
      logprobs: true,
      top_logprobs: 2,
      stop: "France",
      ...GREEDY,
    });
    assert.deepEqual(
      answer.choices.map((choice) => choice.index),
      [0, 1],
    );
    for (const choice of answer.choices) {
      assert.equal(choice.finish_reason, "stop");
      assert.ok(choice.message.content.endsWith("capital of "));
      assert.ok(choice.logprobs.content.every((token) => token.logprob <= 0));
    }
  });

  test(`${mode}: tools`, async () => {
    const answer = await client.chat.completions.create({
      model: "tgi",
      messages: CHAT,
      tools: [WEATHER],
      tool_choice: "required",
      temperature: 0,
      max_tokens: 200,
    });
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    checkWeather(JSON.parse(call.function.arguments));
    const final = await client.chat.completions.create({
      messages: [...CHAT, choice.message, { role: "tool", tool_call_id: call.id, content: "sunny" }],
      ...GREEDY,
    });
    assert.equal(final.choices.length, 1);
  });

  test(`${mode}: tools as a stream`, async () => {
    const stream = client.chat.completions.stream({
      model: "tgi",
      messages: CHAT,
      tools: [WEATHER],
      tool_choice: { type: "function", function: { name: "get_weather" } },
      temperature: 0,
      max_tokens: 200,
    });
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].finish_reason, "tool_calls");
    const [call] = final.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    checkWeather(JSON.parse(call.function.arguments));
  });

  test(`${mode}: tools that run by themselves`, async () => {
    const asked = [];
    const runner = client.chat.completions.runTools({
      model: "tgi",
      messages: CHAT,
      temperature: 0,
      max_tokens: 200,
      tools: [
        {
          type: "function",
          function: {
            ...WEATHER.function,
            parse: JSON.parse,
            function: (args) => (asked.push(args), "sunny"),
          },
        },
      ],
      tool_choice: { type: "function", function: { name: "get_weather" } },
    });
    await runner.done();
    assert.equal(asked.length, 1);
    checkWeather(asked[0]);
  });

  test(`${mode}: structured output`, async () => {
    const answer = await client.chat.completions.parse({
      model: "tgi",
      messages: CHAT,
      response_format: {
        type: "json_schema",
        json_schema: { name: "reading", strict: true, schema: READING },
      },
      temperature: 0,
      max_tokens: 200,
    });
    checkReading(JSON.parse(answer.choices[0].message.content));
  });

  test(`${mode}: completions`, async () => {
    const whole = await client.completions.create({ prompt: QUESTION, ...GREEDY });
    assert.match(whole.choices[0].text, new RegExp(FACT));
    let text = "";
    for await (const chunk of await client.completions.create({ prompt: QUESTION, stream: true, ...GREEDY })) {
      text += chunk.choices[0]?.text ?? "";
    }
    assert.equal(text, whole.choices[0].text);
  });

  test(`${mode}: responses`, async () => {
    const whole = await client.responses.create({ model: "tgi", input: QUESTION, temperature: 0 });
    assert.match(whole.output_text, new RegExp(FACT));
    assert.equal(whole.status, "completed");
    const stream = await client.responses.create({
      model: "tgi",
      input: QUESTION,
      temperature: 0,
      stream: true,
    });
    let text = "";
    let last;
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(text, whole.output_text);
    assert.equal(last.type, "response.completed");
  });

  test(`${mode}: models`, async () => {
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    assert.equal(models.length, 1);
    assert.equal((await client.models.retrieve(models[0])).id, models[0]);
    await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
  });
}

test("errors name what was wrong", async () => {
  const bad = { model: "tgi", messages: CHAT, temperature: -1 };
  await assert.rejects(tgi.chat.completions.create(bad), (error) => {
    assert.ok(error instanceof OpenAI.UnprocessableEntityError);
    assert.match(error.message, /`temperature` must be strictly positive/);
    return true;
  });
  await assert.rejects(strict.chat.completions.create(bad), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.match(error.message, /temperature/);
    return true;
  });
  await assert.rejects(strict.chat.completions.create({ ...bad, temperature: 0, model: "gpt-4o" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
});

test("an error in a stream is thrown while it is read", async () => {
  await assert.rejects(
    async () => {
      const stream = await tgi.chat.completions.create({
        model: "tgi",
        messages: CHAT,
        temperature: -1,
        stream: true,
      });
      for await (const chunk of stream) assert.ok(chunk);
    },
    (error) => {
      assert.ok(error instanceof OpenAI.APIError);
      assert.match(error.message, /must be strictly positive/);
      return true;
    },
  );
});

test("keys", async () => {
  const url = address("SCONCE_LOCKED_URL");
  await assert.rejects(
    connect(url, { apiKey: "wrong" }).chat.completions.create({ messages: CHAT, ...GREEDY }),
    OpenAI.AuthenticationError,
  );
  const client = connect(url, { apiKey: process.env.SCONCE_LOCKED_KEY });
  assert.ok(await client.chat.completions.create({ messages: CHAT, ...GREEDY }));
});

test("a full server", async () => {
  const url = address("SCONCE_SINGLE_URL");
  const error = await refusedBusy(url, () => connect(url).chat.completions.create({ messages: CHAT, ...GREEDY }));
  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.ok(Number(error.headers.get("retry-after")) >= 1);
});
