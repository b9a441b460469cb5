// The page in a real browser against real servers: what a person does with it, and what it says then.

import assert from "node:assert/strict";
import { join } from "node:path";
import * as runner from "node:test";

import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

import { away, key, serve, slow } from "./servers.mjs";

const { after, before } = runner;
const PICTURES = process.env.PICTURES;
const KEEP_PICTURES = process.env.KEEP_PICTURES === "1";
const DESK = { width: 1280, height: 800 };
const PHONE = { width: 390, height: 844 };

let browser;
const running = [];

const test = (name, run) => runner.test(name, { timeout: 180_000 }, run);

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

// A page in a browser of its own, or beside another one; whatever it says on its console is a failure.
async function open(url, { viewport = DESK, scheme = "light", hash = "", beside = null } = {}) {
  const context = beside?.context() ?? (await browser.newContext({ viewport, colorScheme: scheme, reducedMotion: "reduce" }));
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
      await (beside ? page : context).close();
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

// Does something that begins a new answer, and waits until that one stands like this.
async function anew(page, action, status = "done") {
  const ids = await answers(page).evaluateAll((all) => all.map((answer) => answer.dataset.id));
  await action();
  const others = ids.map((id) => `:not([data-id="${id}"])`).join("");
  await page.locator(`[data-testid=answer][data-status=${status}]${others}`).waitFor();
}

const retry = (page) => page.getByRole("button", { name: "Retry" }).last().click();

// Asks again and again until it is so.
async function until(what, check) {
  const end = Date.now() + 20_000;
  while (!(await check())) {
    assert.ok(Date.now() < end, `not within 20 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// What has the focus, by its name, and `body` if nothing has.
const focused = (page) =>
  page.evaluate(() => document.activeElement?.ariaLabel ?? document.activeElement?.id ?? document.activeElement?.tagName);

async function post(url, body) {
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) });
  return response.text();
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
  await anew(page, () => page.getByRole("form", { name: "Edit the message" }).getByRole("button", { name: "Send" }).click());
  assert.equal(await answers(page).count(), 1);
  assert.match(await answers(page).first().innerText(), /Rome/);

  await anew(page, () => retry(page));
  assert.equal(await answers(page).count(), 1);

  // Each token's probability, also after a reload.
  await page.getByRole("button", { name: "Confidence" }).click();
  await anew(page, () => retry(page));
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
  await page.getByText(/word5/).waitFor();
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("textbox", { name: "System prompt" }).press("Escape");
  await page.getByText(/word10/).waitFor();
  await message(page).press("Escape");
  await answered(page, 1, "stopped");
  const stopped = await answers(page).first().innerText();
  await until("the upstream sees the stop", () => upstream.left() === 1);
  assert.equal(await answers(page).first().innerText(), stopped, "nothing comes after the stop");

  await anew(page, () => retry(page), "streaming");
  await page.getByText(/word15/).waitFor();
  const shown = await answers(page).first().innerText();
  await page.reload();
  await answered(page, 1, "interrupted");
  const kept = await answers(page).first().innerText();
  const words = (text) => Number(/.*word(\d+)/s.exec(text)[1]);
  assert.ok(words(kept) >= words(shown), `shown up to ${words(shown)}, kept up to ${words(kept)}`);
  assert.match(kept, /Interrupted/);
  await until("the upstream sees the reload", () => upstream.left() === 2);
  await anew(page, () => retry(page), "streaming");
  await page.getByText(/word3\b/).waitFor();
  await page.getByRole("button", { name: "Stop" }).click();
  await answered(page, 1, "stopped");
  await until("the upstream sees the second stop", () => upstream.left() === 3);
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

  await started(serve({ port: far.port }));
  await until("the second server is asked again", async () => {
    await anew(page, () => ask(page, "What is the capital of Spain?"));
    return /lab/.test(await facts(page).innerText());
  });
  await upstreams.getByText("Ready").waitFor();

  // Each request stands among the decisions, with why it went where it did.
  const decisions = board.page.getByRole("region", { name: "Decisions" });
  const row = decisions.getByRole("button", { name: /details of request/ }).nth(1);
  await row.click();
  assert.equal(await row.getAttribute("aria-expanded"), "true");
  await decisions.getByText(/The policy is `prefer-remote`/).waitFor();
  await accessible(board.page);
  await row.click();
  if (KEEP_PICTURES) await traffic(near.url);
  await board.page.setViewportSize({ width: 1280, height: 1180 });
  await board.page.getByRole("region", { name: "Live data" }).evaluate((element) => element.scrollTo(0, 0));
  if (KEEP_PICTURES) await board.page.waitForTimeout(1500);
  await picture(board.page, "dashboard");
  await picture(page, "chat");
  await board.close();
  await close();
});

test("an answer deleted or edited away while it comes in, and brought back", async () => {
  const upstream = await started(slow());
  const server = await started(serve({ settings: away(upstream.url) }));
  const { page, close } = await open(server.url);
  const undo = page.getByRole("button", { name: "Undo" });
  await ask(page, "Count.");
  await page.getByText(/word10/).waitFor();
  const shown = await answers(page).last().getByTestId("answer-text").innerText();
  await page.getByRole("button", { name: "Delete Count." }).click();
  await until("the upstream sees the deletion", () => upstream.left() === 1);
  await undo.click();
  await until("the message box has the focus after Undo", async () => (await focused(page)) === "Message");
  await page.getByRole("link", { name: "Count." }).click();
  await answered(page, 1, "stopped");
  assert.ok((await answers(page).last().getByTestId("answer-text").innerText()).startsWith(shown));

  await anew(page, () => ask(page, "Again."), "streaming");
  await page.getByText(/word10/).nth(1).waitFor();
  await page.getByTestId("question").first().hover();
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.getByRole("textbox", { name: "Changed message" }).fill("Count on.");
  await anew(page, () => page.keyboard.press("Enter"), "streaming");
  await until("the upstream sees the edit", () => upstream.left() === 2);
  await undo.click();
  await answered(page, 2, "stopped");
  await until("the upstream sees the undoing", () => upstream.left() === 3);
  assert.equal(await answers(page).count(), 2);
  assert.match(await answers(page).last().innerText(), /word10/);
  await page.reload();
  await answered(page, 2, "stopped");
  await close();
});

test("two tabs on one conversation", async () => {
  const upstream = await started(slow());
  const server = await started(serve({ settings: away(upstream.url, { policy: "local-only" }) }));
  const { page, close } = await open(server.url);
  await ask(page, "What is the capital of France?");
  await answered(page, 1);
  // What comes back is kept, so that another tab finds it.
  await page.reload();
  await answered(page, 1);
  const hash = new URL(page.url()).hash;
  const second = await open(server.url, { hash, beside: page });
  await answered(second.page, 1);

  const questions = ["What is the capital of Italy?", "What is the capital of Spain?"];
  await message(page).fill(questions[0]);
  await message(second.page).fill(questions[1]);
  await Promise.all([page, second.page].map((tab) => tab.getByRole("button", { name: "Send" }).click()));
  for (const tab of [page, second.page]) {
    await answered(tab, 3);
    for (const question of questions) assert.equal(await tab.getByTestId("question").getByText(question).count(), 1);
  }
  await second.page.reload();
  await answered(second.page, 3);
  await close();
  assert.equal(upstream.left(), 0);
});

test("a conversation that is deleted in one tab while another one writes it", async () => {
  const upstream = await started(slow());
  const server = await started(serve({ settings: away(upstream.url) }));
  const { page, close } = await open(server.url);
  await ask(page, "Count.");
  await page.getByText(/word10/).waitFor();
  const second = await open(server.url, { hash: new URL(page.url()).hash, beside: page });
  await second.page.getByText(/word10/).waitFor();
  await second.page.getByRole("button", { name: "Delete Count." }).click();
  await page.getByRole("heading", { name: "Not here" }).waitFor();
  await until("the upstream sees the deletion", () => upstream.left() === 1);
  await page.reload();
  await page.getByRole("heading", { name: "Not here" }).waitFor();
  await second.close();
  await close();
});

test("an answer whose tab goes away is kept by the other one", async () => {
  const upstream = await started(slow());
  const server = await started(serve({ settings: away(upstream.url) }));
  const { page, close } = await open(server.url);
  await ask(page, "Count.");
  await page.getByText(/word10/).waitFor();
  const second = await open(server.url, { hash: new URL(page.url()).hash, beside: page });
  await answered(second.page, 1, "streaming");
  await page.goto(`${server.url}/ui/icon.svg`);
  await answered(second.page, 1, "interrupted");
  await until("the upstream sees that it left", () => upstream.left() === 1);
  await anew(second.page, () => retry(second.page), "streaming");
  await second.close();
  await close();
});

test("the focus after what had it went away", async () => {
  const server = await started(serve());
  const { page, close } = await open(server.url);
  await ask(page, "What is the capital of France?");
  await answered(page, 1);
  const button = page.getByRole("button", { name: "Retry" });
  await button.focus();
  await anew(page, () => page.keyboard.press("Enter"));
  await until("the message box has it after Retry", async () => (await focused(page)) === "Message");

  for (const leave of [() => page.keyboard.press("Escape"), () => page.getByRole("button", { name: "Cancel" }).click()]) {
    await page.getByTestId("question").first().hover();
    await page.getByRole("button", { name: "Edit" }).first().click();
    await until("the changed message has it", async () => (await focused(page)) === "Changed message");
    await leave();
    await until("the Edit button has it again", async () => (await focused(page)) === "Edit");
  }

  await page.getByRole("button", { name: "Delete What is the capital of France?" }).click();
  await page.getByRole("button", { name: "Dismiss" }).click();
  await until("the message box has it after Dismiss", async () => (await focused(page)) === "Message");
  await close();
});

test("what an answer must not do to the page", async () => {
  const words = [
    '<img src=x onerror="window.harmed = true">\n\n<script>window.harmed = true</script>\n\n',
    "[a](javascript:window.harmed=true) and ![p](http://127.0.0.1:1/x.png)\n\n",
    "<a href='javascript:window.harmed=true'>b</a> and [later][here]\n\n",
    "The end.\n\n[here]: https://example.com/\n",
  ];
  const upstream = await started(slow({ words, every: 300 }));
  const server = await started(serve({ settings: away(upstream.url) }));
  const { page, close } = await open(server.url);
  const asked = [];
  page.on("request", (request) => asked.push(new URL(request.url()).pathname));
  const own = "/ui/icon.svg";
  await ask(page, "Harm me.");
  await answered(page, 1);
  const text = answers(page).first().getByTestId("answer-text");
  await text.getByText("The end.").waitFor();
  const found = await text.evaluate((element) => ({
    harmful: element.querySelectorAll("img, script, iframe, [onerror], [style]").length,
    links: Object.fromEntries([...element.querySelectorAll("a")].map((link) => [link.textContent, link.href])),
  }));
  assert.deepEqual(found, { harmful: 0, links: { p: "http://127.0.0.1:1/x.png", later: "https://example.com/" } });
  await text.getByText("a and p").click({ position: { x: 2, y: 8 } });
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  assert.deepEqual(asked.filter((path) => path !== own), ["/v1/chat/completions"]);
  await close();
});

test("the dashboard's list after the server began anew", async () => {
  const first = await started(serve());
  const { page, close } = await open(first.url, { hash: "#/dashboard" });
  const decisions = page.getByRole("region", { name: "Decisions" });
  const rows = decisions.getByRole("button", { name: /details of request/ });
  const body = { messages: [{ role: "user", content: "What is 1 + 1?" }], max_tokens: 5 };
  for (let count = 0; count < 2; count += 1) await post(first.url, body);
  await rows.nth(1).click();
  await decisions.getByText("There is nowhere else to go").waitFor();
  const hold = decisions.getByRole("button", { name: /Hold the list/ });
  await hold.click();
  await first.stop();
  const upstream = await started(slow({ words: ["two"] }));
  await started(serve({ port: first.port, settings: away(upstream.url) }));
  await post(first.url, body);
  await until("the old rows are gone", async () => (await rows.count()) === 1);
  assert.equal(await hold.getAttribute("aria-pressed"), "false");
  assert.equal(await rows.first().getAttribute("aria-expanded"), "false");
  await rows.first().click();
  await decisions.getByText(/The policy is `prefer-remote`/).waitFor();
  await page.getByRole("region", { name: "Where answers are made" }).getByText("Not finished").waitFor();
  await accessible(page);
  await close();
});

test("a key that is forgotten in one tab is forgotten in the other", async () => {
  const user = await key("user");
  const server = await started(serve({ settings: user.table }));
  const { page, close } = await open(server.url);
  const dialog = page.getByRole("dialog", { name: "API key" });
  await page.getByRole("button", { name: "API key" }).click();
  await dialog.getByLabel("Key").fill(user.text);
  await dialog.getByRole("checkbox", { name: /Remember/ }).check();
  await dialog.getByRole("button", { name: "Use this key" }).click();
  await dialog.waitFor({ state: "hidden" });
  const second = await open(server.url, { beside: page });
  await ask(second.page, "What is 2 + 3?");
  await answered(second.page, 1);
  await page.getByRole("button", { name: "API key" }).click();
  await dialog.getByRole("button", { name: "Forget key" }).click();
  await dialog.waitFor({ state: "hidden" });
  await anew(second.page, () => ask(second.page, "What is 3 + 3?"), "failed");
  await second.close();
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
  await answered(page, 1);
  assert.match(await answers(page).last().getByTestId("answer-text").innerText(), /5/);

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

test("a dashboard with an upstream, in the dark", async () => {
  const upstream = await started(slow({ words: ["one", " two"], every: 5 }));
  const server = await started(serve({ settings: away(upstream.url, { price: "{ input = 2.0, output = 6.0 }" }) }));
  await post(server.url, { messages: [{ role: "user", content: "Count." }], max_tokens: 5 });
  await post(server.url, { messages: [{ role: "user", content: "Count." }], max_tokens: -1 });
  const { page, close } = await open(server.url, { scheme: "dark", hash: "#/dashboard" });
  await page.getByRole("region", { name: "Upstreams" }).getByText("Ready").waitFor();
  const rows = page.getByRole("region", { name: "Decisions" }).getByRole("button", { name: /details of request/ });
  await rows.last().click();
  await page.getByRole("region", { name: "Where answers are made" }).getByText("Not finished").waitFor();
  await accessible(page);
  await picture(page, "dashboard-hybrid-dark");
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
