"use strict";

const field = (id) => document.getElementById(id);
const TIERS = {
  "slm": "SLM, unseen by the LLM",
  "slm-verified": "SLM, verified by the LLM",
  "peer": "written by the LLM for a peer",
  "llm": "LLM",
  "llm-corrected": "LLM, in place of a refused draft",
  "degraded": "SLM, though the LLM was asked for",
};
const NOTHING = {
  answers: 0, tokens: 0, passes: 0, up: 0, down: 0, seconds: 0, first: 0,
  tiers: Object.fromEntries(Object.keys(TIERS).map((tier) => [tier, 0])),
};
const copyOf = (counts) => ({ ...counts, tiers: { ...counts.tiers } });

let model = null;
let total = copyOf(NOTHING);
let stopping = null;

// -- what the user sees ---------------------------------------------------------------------------------------------

function percent(part, whole) {
  return whole ? `${(100 * part / whole).toFixed(1)} %` : "–";
}

function rowsOf(counts) {
  const price = Number(field("price").value) || 0;
  return [
    ["answers", counts.answers],
    ["tokens", counts.tokens],
    ...Object.entries(TIERS).map(([tier, says]) => [`  ${says}`, counts.tiers[tier]]),
    ["passes of the LLM", counts.passes],
    ["passes of the LLM spared", percent(counts.tokens - counts.passes, counts.tokens)],
    ["cost, in prices", (counts.passes * price).toPrecision(3)],
    ["cost of the LLM alone", (counts.tokens * price).toPrecision(3)],
    ["bytes to the LLM", counts.up],
    ["bytes from the LLM", counts.down],
    ["to the first token, mean", counts.answers ? `${(1000 * counts.first / counts.answers).toFixed(0)} ms` : "–"],
    ["tokens a second", counts.seconds ? (counts.tokens / counts.seconds).toFixed(1) : "–"],
  ];
}

function showCounters(current) {
  const all = rowsOf(total);
  const rows = rowsOf(current).map(([name, value], i) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    for (const shown of [value, all[i][1]]) {
      const cell = document.createElement("td");
      cell.textContent = shown;
      row.append(cell);
    }
    return row;
  });
  field("counters").replaceChildren(...rows);
}

function showToken(token) {
  const span = document.createElement("span");
  span.className = `token ${token.tier}`;
  span.textContent = token.text;
  const doubt = token.u === null ? "" : `; u ${token.u.toFixed(3)}, τ ${token.tau.toFixed(3)}`;
  span.title = (TIERS[token.tier] || token.tier) + doubt;
  field("answer").append(span);
}

function showModeFields() {
  for (const label of document.querySelectorAll("[data-for]")) {
    label.hidden = !label.dataset.for.split(" ").includes(field("mode").value);
  }
}

function setBusy(busy) {
  field("go").disabled = busy;
  field("stop").disabled = !busy;
  field("answer").setAttribute("aria-busy", String(busy));
}

// -- asking ---------------------------------------------------------------------------------------------------------

function headers() {
  const key = field("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function question() {
  const mode = field("mode").value;
  const asked = {
    model, stream: true, mode, trace: true,
    messages: [{ role: "user", content: field("prompt").value }],
    max_tokens: Number(field("length").value), temperature: Number(field("temperature").value),
  };
  if (mode === "bounded") asked.eps = Number(field("eps").value);
  if (mode === "bounded" || mode === "fedhlm") {
    const fraction = Number(field("fraction").value) / 100;
    if (fraction < 1) asked.max_cloud_fraction = fraction;
  }
  return asked;
}

// To the end of the body, which frees the connection for the next question.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function ask() {
  const current = copyOf(NOTHING);
  const began = performance.now();
  field("answer").replaceChildren();
  field("fault").textContent = field("said").textContent = "";
  stopping = new AbortController();
  setBusy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(question()), signal: stopping.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      read(event, current, began);
    }
  } catch (fault) {
    field("fault").textContent = fault.name === "AbortError" ? "stopped" : `No answer: ${fault.message}`;
  } finally {
    current.seconds = (performance.now() - began) / 1000;
    current.answers = current.tokens ? 1 : 0; // a refusal is none
    for (const name of ["answers", "tokens", "passes", "up", "down", "seconds", "first"]) total[name] += current[name];
    for (const tier of Object.keys(TIERS)) total.tiers[tier] += current.tiers[tier];
    showCounters(current);
    setBusy(false);
  }
}

function read(event, current, began) {
  const said = event.fedtandem || {};
  for (const token of said.tokens || []) {
    if (!current.tokens) current.first = (performance.now() - began) / 1000;
    current.tokens += 1;
    if (token.tier in current.tiers) current.tiers[token.tier] += 1;
    showToken(token);
  }
  if (said.llm_passes !== undefined) {
    current.passes = said.llm_passes;
    current.up = said.uplink_bytes;
    current.down = said.downlink_bytes;
    if (said.degraded !== "none") field("said").textContent = `Degraded: ${said.degraded}. The grey tokens are the SLM's alone.`;
  }
  showCounters(current);
}

async function meet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401 || response.status === 403) {
      field("device").textContent = "this device asks for an API key: enter it under API key";
      return;
    }
    if (!response.ok) throw new Error((await response.json()).error.message);
    model = (await response.json()).data[0].id;
    const ready = await (await fetch("readyz")).json();
    field("device").textContent = `model ${model}; ${ready.ready ? "ready" : "not ready: the LLM does not answer"}`;
  } catch (fault) {
    field("device").textContent = `the device does not answer: ${fault.message}`;
  }
}

field("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (model === null) await meet();
  await ask();
});
field("stop").addEventListener("click", () => stopping && stopping.abort());
field("clear").addEventListener("click", () => { total = copyOf(NOTHING); showCounters(copyOf(NOTHING)); });
field("mode").addEventListener("change", showModeFields);
field("key").addEventListener("change", meet);
showModeFields();
showCounters(copyOf(NOTHING));
meet();
