// Servers for the page's tests: the real binary with settings of the test's own, and an upstream that speaks slowly.

import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const BINARY = process.env.SCONCE;
const START_MS = 30_000;

// A running server; `settings` is the text of its file, `port` a free one if not named.
export async function serve({ settings = "", flags = [], port = 0 } = {}) {
  if (!BINARY) throw new Error("SCONCE is not set: start the tests with tests/ui/run");
  const folder = await mkdtemp(join(tmpdir(), "sconce-ui-"));
  const config = join(folder, "sconce.toml");
  await writeFile(config, settings.replaceAll("STATE", join(folder, "state")));
  const words = ["serve", "--config", config, "--port", String(port), "--json-output", ...flags];
  const child = spawn(BINARY, words, { stdio: ["ignore", "ignore", "pipe"], env: { PATH: process.env.PATH } });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const log = [];
  const address = await new Promise((resolve, reject) => {
    const giveUp = (what) => {
      child.kill("SIGKILL");
      reject(new Error(`the server ${what}:\n${log.join("\n")}`));
    };
    const timer = setTimeout(() => giveUp(`did not start within ${START_MS} ms`), START_MS);
    child.once("exit", (code) => giveUp(`ended with ${code}`));
    createInterface({ input: child.stderr }).on("line", (line) => {
      log.push(line);
      const said = line.includes('"Connected"') ? JSON.parse(line) : null;
      if (!said) return;
      clearTimeout(timer);
      resolve(said.address);
    });
  });
  return {
    url: `http://${address}`,
    port: Number(address.split(":").at(-1)),
    log,
    async stop() {
      child.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}

// Settings of a server that may ask one upstream at `url`.
export function away(url, { policy = "prefer-remote", price = "", more = "", kind = "openai_compat", engine = "openai", model = "m" } = {}) {
  const billing = price ? 'billing = "tokens"\nprovider = "lab"\nmax_usd_per_day = 1' : 'billing = "own"';
  return `[remote]
state_dir = "STATE"
[[remote.upstream]]
name = "next-door"
kind = "${kind}"
engine = "${engine}"
base_url = "${url}"
${billing}
[[remote.target]]
name = "far"
upstream = "next-door"
model = "${model}"
${price ? `price = ${price}` : ""}
[[route.model]]
name = "default"
targets = ["far"]
[egress]
anonymous = "any"
[route]
policy = "${policy}"
${more}`;
}

// An OpenAI-compatible upstream that says these words, one each so many milliseconds. It knows how many callers left
// before the end.
export async function slow({ words = Array.from({ length: 200 }, (_, at) => (at === 0 ? "word0" : ` word${at}`)), every = 50 } = {}) {
  let left = 0;
  const server = createServer((request, response) => {
    request.resume();
    if (request.method !== "POST") {
      response.writeHead(200, { "content-type": "application/json" });
      response.end(JSON.stringify({ object: "list", data: [{ id: "m", object: "model" }] }));
      return;
    }
    response.writeHead(200, { "content-type": "text/event-stream" });
    const head = { id: "c", object: "chat.completion.chunk", created: 1, model: "m" };
    const chunk = (delta, finish_reason = null) => ({ ...head, choices: [{ index: 0, delta, finish_reason }] });
    const say = (body) => response.write(`data: ${JSON.stringify(body)}\n\n`);
    let said = 0;
    const timer = setInterval(() => {
      if (said < words.length) {
        say(chunk({ ...(said === 0 ? { role: "assistant" } : {}), content: words[said] }));
        said += 1;
        return;
      }
      clearInterval(timer);
      say(chunk({}, "stop"));
      const usage = { prompt_tokens: 5, completion_tokens: words.length, total_tokens: words.length + 5 };
      say({ ...head, choices: [], usage });
      response.end("data: [DONE]\n\n");
    }, every);
    response.on("close", () => {
      clearInterval(timer);
      if (!response.writableFinished) left += 1;
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    left: () => left,
    stop() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

// A key's text and the table that lets it in.
export async function key(name, more = "") {
  const folder = await mkdtemp(join(tmpdir(), "sconce-key-"));
  const config = join(folder, "sconce.toml");
  await writeFile(config, "");
  const words = ["key", "new", "--name", name, "--config", config];
  const child = spawn(BINARY, words, { stdio: ["ignore", "pipe", "ignore"], env: { PATH: process.env.PATH } });
  let text = "";
  for await (const piece of child.stdout) text += piece;
  const table = await readFile(config, "utf8");
  await rm(folder, { recursive: true, force: true });
  return { text: text.trim(), table: `${table}\n${more}\n` };
}
