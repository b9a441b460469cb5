// What an open dashboard costs a browser: processor time of all its processes, over that of an empty page.
//
//   SCONCE=target/release/sconce node tests/ui/cost.mjs [SECONDS]

import { readFileSync, readdirSync } from "node:fs";

import { chromium } from "playwright-core";

import { serve } from "./servers.mjs";

const SECONDS = Number(process.argv[2] ?? 60);
const TICKS = 100;

// Ticks of every process that descends from this one and is a browser's.
function ticks() {
  let sum = 0;
  for (const id of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${id}/cmdline`, "utf8").includes("chrom")) continue;
      const fields = readFileSync(`/proc/${id}/stat`, "utf8").split(") ")[1].split(" ");
      sum += Number(fields[11]) + Number(fields[12]);
    } catch {
      // It has ended meanwhile.
    }
  }
  return sum;
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function share(page) {
  await wait(5_000);
  const before = ticks();
  await wait(1000 * SECONDS);
  return (100 * (ticks() - before)) / TICKS / SECONDS;
}

const server = await serve();
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 1180 } });
  await page.goto("about:blank");
  const empty = await share(page);
  await page.goto(`${server.url}/ui/#/dashboard`);
  await page.getByText("Live", { exact: true }).waitFor();
  const idle = await share(page);
  const asking = setInterval(() => {
    const body = JSON.stringify({ inputs: "Tell me a joke.", parameters: { max_new_tokens: 30 } });
    void fetch(`${server.url}/generate`, { method: "POST", headers: { "content-type": "application/json" }, body });
  }, 1000);
  const busy = await share(page);
  clearInterval(asking);
  const told = [empty, idle, busy].map((share) => `${share.toFixed(2)} %`);
  console.log(`of a core: an empty page ${told[0]}, the dashboard ${told[1]}, with a request a second ${told[2]}`);
} finally {
  await browser.close();
  await server.stop();
}
