// The page in a real browser against real servers: what a person does with it, and what it says then.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

import { away, key, serve, slow } from "./servers.mjs";

const PICTURES = process.env.PICTURES;
const DESK = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };

let browser;
const running = [];

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
});

after(async () => {
  await browser?.close();
  await Promise.all(running.map((server) => server.stop()));
});

async function started(making) {
  const server = await making;
  running.push(server);
  return server;
}

// A page of its own; whatever it says on its console is a failure.
async function open(url, { viewport = DESK, scheme = "light", hash = "" } = {}) {
  const context = await browser.newContext({ viewport, colorScheme: scheme, reducedMotion: "reduce" });
  const page = await context.newPage();
  const complaints = [];
  // An answer that is an error is part of some tests; the browser notes each on the console.
  const expected = (text) => text.startsWith("Failed to load resource");
  page.on("console", (said) => {
    if (["error", "warning"].includes(said.type()) && !expected(said.text())) complaints.push(said.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) complaints.push(`asks ${request.url()}`);
  });
  await page.goto(`${url}/ui/${hash}`);
  return {
    page,
    async close() {
      await context.close();
      assert.deepEqual(complaints, []);
    },
  };
}

// No rule of WCAG that a machine can check is broken.
async function accessible(page) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" | ")}`);
  assert.deepEqual(told, []);
}

async function picture(page, name) {
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

// Nothing is wider than the window.
async function fits(page) {
  const width = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(width <= 0, `the page is ${width} px wider than the window`);
}

const message = (page) => page.getByRole("textbox", { name: "Message" });
const answers = (page) => page.getByTestId("answer");
const facts = (page) => page.getByTestId("facts").last();

async function ask(page, text) {
  await message(page).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
}

async function answered(page, count, status = "done") {
  await page.locator(`[data-testid=answer][data-status=${status}]`).nth(count - 1).waitFor();
}

// A crowd that asks for some seconds, partly for what may not leave.
async function traffic(url) {
  const questions = ["What is the capital of Norway?", "Tell me a story about a cat.", "What is 12 + 30?", "Tell me a joke."];
  const one = async (number) => {
    const headers = { "content-type": "application/json" };
    if (number % 3 !== 0) headers["x-route-policy"] = "local-only";
    const content = questions[number % questions.length];
    const body = JSON.stringify({ messages: [{ role: "user", content }], max_tokens: 120, temperature: 1 });
    const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body });
    await response.text();
  };
  for (let second = 0; second < 12; second += 1) {
    await Promise.all(Array.from({ length: 4 + 3 * (second % 4) }, (_, number) => one(number)));
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}

test("a chat with the demo model", async () => {
  const server = await started(serve());
  const { page, close } = await open(server.url);
  await page.getByRole("list", { name: "Examples" }).waitFor();
  await accessible(page);
  await picture(page, "welcome");

  await ask(page, "What is the capital of France?");
  await answered(page, 1);
  assert.match(await answers(page).first().innerText(), /Paris/);
  assert.match(await facts(page).innerText(), /this machine/);
  assert.match(await facts(page).innerText(), /tokens\/s/);

  // An edited question takes the place of the old one, with all that followed it.
  await page.getByTestId("question").first().hover();
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.getByRole("textbox", { name: "Changed message" }).fill("What is the capital of Italy?");
  await page.getByRole("form", { name: "Edit the message" }).getByRole("button", { name: "Send" }).click();
  await page.getByText(/Rome/).first().waitFor();
  await answered(page, 1);
  assert.equal(await answers(page).count(), 1);

  await page.getByRole("button", { name: "Retry" }).last().click();
  await answered(page, 1);

  // Each token's probability, also after a reload.
  await page.getByRole("button", { name: "Confidence" }).click();
  await page.getByRole("button", { name: "Retry" }).last().click();
  await page.getByTestId("shaded").waitFor();
  await answered(page, 1);
  const sure = page.getByTestId("shaded").locator("span[title]").first();
  assert.match(await sure.getAttribute("title"), /^[\d.]+ %$/);
  await accessible(page);
  await page.reload();
  await page.getByTestId("shaded").waitFor();

  // Conversations are kept; a new one begins empty.
  await page.getByRole("button", { name: "New conversation" }).or(page.getByRole("link", { name: "New conversation" })).click();
  assert.equal(await answers(page).count(), 0);
  await close();
});

test("an answer in a shape, and a tool that is called", async () => {
  const server = await started(serve());
  const { page, close } = await open(server.url);
  await page.getByRole("list", { name: "Examples" }).getByRole("button", { name: /bike ride/ }).click();
  await answered(page, 1);
  const shape = JSON.parse(await answers(page).first().locator("pre").innerText());
  assert.deepEqual(Object.keys(shape).sort(), ["activity", "animals", "animals_seen", "location"]);

  await page.goto(`${server.url}/ui/#/chat`);
  await page.getByRole("list", { name: "Examples" }).getByRole("button", { name: /weather/i }).click();
  await answered(page, 1);
  const call = page.getByRole("region", { name: "Call of get_weather" });
  assert.match(await call.innerText(), /Paris/);
  await accessible(page);
  await call.getByRole("textbox", { name: /Result of/ }).fill('{"temperature": 21, "sky": "sunny"}');
  await page.getByRole("button", { name: "Send result" }).click();
  await answered(page, 2);
  await close();
});

test("a slow answer: stopped, and reloaded in its middle", async () => {
  const upstream = await started(slow());
  const server = await started(serve({ settings: away(upstream.url) }));
  const { page, close } = await open(server.url);
  await ask(page, "Count.");
  await page.getByText(/word10/).waitFor();
  await page.keyboard.press("Escape");
  await answered(page, 1, "stopped");
  const stopped = await answers(page).first().innerText();
  await page.waitForTimeout(500);
  assert.equal(await answers(page).first().innerText(), stopped, "nothing comes after the stop");

  await page.getByRole("button", { name: "Retry" }).last().click();
  await page.getByText(/word15/).waitFor();
  const shown = await answers(page).first().innerText();
  await page.reload();
  await answered(page, 1, "interrupted");
  const kept = await answers(page).first().innerText();
  const words = (text) => Number(/.*word(\d+)/s.exec(text)[1]);
  assert.ok(words(kept) >= words(shown), `shown up to ${words(shown)}, kept up to ${words(kept)}`);
  assert.match(kept, /Interrupted/);
  await page.getByRole("button", { name: "Retry" }).last().click();
  await page.getByText(/word3\b/).waitFor();
  await page.getByRole("button", { name: "Stop" }).click();
  await close();
});

test("answers of a second server, which goes down and comes back", async () => {
  const far = await started(serve());
  const settings = away(far.url, {
    kind: "tgi",
    engine: "tgi",
    model: "sconce-demo",
    price: "{ input = 2.0, output = 6.0 }",
    more: '[remote.breaker]\nconsecutive_failures = 1\nopen_base_seconds = 1\nsuccesses_to_close = 1\n',
  });
  const near = await started(serve({ settings }));
  const { page, close } = await open(near.url);
  await ask(page, "What is the capital of France?");
  await answered(page, 1);
  assert.match(await answers(page).first().innerText(), /Paris/);
  const where = await facts(page).innerText();
  assert.match(where, /lab/);
  assert.match(where, /cost \S+ USD/);
  await page.getByRole("link", { name: "Chat" }).waitFor();

  const board = await open(near.url, { hash: "#/dashboard" });
  const upstreams = board.page.getByRole("region", { name: "Upstreams" });
  await upstreams.getByText("Ready").waitFor();

  await far.stop();
  await ask(page, "What is the capital of Italy?");
  await answered(page, 2);
  assert.match(await facts(page).innerText(), /this machine/);
  assert.match(await facts(page).innerText(), /saved \S+ USD/);
  await upstreams.getByText(/Failing|Being tried/).waitFor();
  await board.page.waitForTimeout(1500);

  await started(serve({ port: far.port }));
  await page.waitForTimeout(2000);
  await ask(page, "What is the capital of Spain?");
  await answered(page, 3);
  assert.match(await facts(page).innerText(), /lab/);
  await upstreams.getByText("Ready").waitFor();

  // Each request stands among the decisions, with why it went where it did.
  const decisions = board.page.getByRole("region", { name: "Decisions" });
  const row = decisions.getByRole("button", { name: /details of request/ }).nth(1);
  await row.click();
  assert.equal(await row.getAttribute("aria-expanded"), "true");
  await decisions.getByText(/The policy is `prefer-remote`/).waitFor();
  await accessible(board.page);
  await row.click();
  await traffic(near.url);
  await board.page.setViewportSize({ width: 1280, height: 1180 });
  await board.page.getByRole("region", { name: "Live data" }).evaluate((element) => element.scrollTo(0, 0));
  await board.page.waitForTimeout(1500);
  await picture(board.page, "dashboard");
  await picture(page, "chat");
  await board.close();
  await close();
});

test("a server with keys", async () => {
  const [admin, user] = [await key("admin", "admin = true"), await key("user")];
  const server = await started(serve({ settings: `${admin.table}\n${user.table}` }));
  const { page, close } = await open(server.url);
  await ask(page, "Hello");
  const dialog = page.getByRole("dialog", { name: "API key" });
  await dialog.waitFor();
  await accessible(page);
  await dialog.getByLabel("Key").fill("sk-sconce-wrong");
  await dialog.getByRole("button", { name: "Use this key" }).click();
  await dialog.getByText("does not know this key").waitFor();
  await dialog.getByLabel("Key").fill(user.text);
  await dialog.getByRole("button", { name: "Use this key" }).click();
  await dialog.waitFor({ state: "hidden" });
  await ask(page, "What is 2 + 3?");
  await page.getByText(/5/).first().waitFor();

  await page.getByRole("link", { name: "Dashboard" }).click();
  await page.getByRole("heading", { name: "The dashboard needs an admin key" }).waitFor();
  await accessible(page);
  await page.getByRole("button", { name: "Enter another key" }).click();
  await dialog.getByLabel("Key").fill(admin.text);
  await dialog.getByRole("button", { name: "Use this key" }).click();
  await page.getByText("Live", { exact: true }).waitFor();
  await page.getByText("user", { exact: true }).first().waitFor();
  await close();
});

test("the dashboard says when it is not connected, and goes on by itself", async () => {
  const server = await started(serve());
  const { page, close } = await open(server.url, { hash: "#/dashboard" });
  await page.getByText("Live", { exact: true }).waitFor();
  await page.getByText("Nothing has been asked yet").first().waitFor();
  await page.getByText("No upstreams are configured").waitFor();
  await accessible(page);
  await server.stop();
  await page.getByText("The connection is lost").waitFor();
  await accessible(page);
  await started(serve({ port: server.port }));
  await page.getByText("Live", { exact: true }).waitFor({ timeout: 60_000 });
  await close();
});

test("dark, and on a phone", async () => {
  const server = await started(serve());
  const desk = await open(server.url, { scheme: "dark" });
  await ask(desk.page, "Tell me a story about a fox.");
  await answered(desk.page, 1);
  await accessible(desk.page);
  const background = await desk.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const lightness = Math.max(...background.match(/[\d.]+/g).slice(0, 3).map(Number));
  assert.ok(lightness < 64, `the background is ${background}`);
  await picture(desk.page, "chat-dark");
  await desk.page.getByRole("link", { name: "Dashboard" }).click();
  await desk.page.getByText("Live", { exact: true }).waitFor();
  await accessible(desk.page);
  await picture(desk.page, "dashboard-dark");
  await desk.close();

  for (const width of [360, PHONE.width]) {
    const phone = await open(server.url, { viewport: { ...PHONE, width } });
    await ask(phone.page, "What is the capital of France?");
    await answered(phone.page, 1);
    await fits(phone.page);
    await accessible(phone.page);
    await picture(phone.page, `chat-${width}`);
    await phone.page.getByRole("button", { name: "Settings" }).click();
    await fits(phone.page);
    await accessible(phone.page);
    await phone.page.getByRole("button", { name: "Close settings" }).click();
    await phone.page.getByRole("button", { name: "Menu" }).click();
    await accessible(phone.page);
    await phone.page.getByRole("link", { name: "Dashboard" }).click();
    await phone.page.getByText("Live", { exact: true }).waitFor();
    await fits(phone.page);
    await accessible(phone.page);
    await picture(phone.page, `dashboard-${width}`);
    await phone.close();
  }
});
