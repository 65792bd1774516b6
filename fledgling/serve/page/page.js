// The page: a conversation, its branches, and the settings it is drawn with. State lives in `store.js`'s conversations and
// in `settings`; everything on the screen is drawn from these two.

import { ask, models, Refused } from "./api.js";
import { button, byToken, prose } from "./message.js";
import { add, begin, load, path, remove, save, siblings } from "./store.js";

const $ = (id) => document.getElementById(id);
const DEFAULTS = {
  temperature: 0.8, top_p: 1, top_k: 50, min_p: 0, repetition_penalty: 1, max_tokens: 256, seed: "", system: "", key: "",
  calculator: true, theme: "auto",
};
const KEPT = "fledgling.settings";
const ALTERNATIVES = 4;
const REASONS = { length: "cut short: the longest answer or the context is reached", stopped: "stopped" };

let settings = { ...DEFAULTS };
try {
  settings = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
} catch { /* unreadable settings are the defaults */ }

let conversations = load();
let current = conversations[0] ?? begin();
let running = null; // {node, abort} while an answer is being written
const shownByToken = new Set(); // ids of messages shown token by token

function keep() {
  conversations = [current, ...conversations.filter((other) => other.id !== current.id)];
  if (!save(conversations.filter((one) => Object.keys(one.nodes).length)))
    say("The browser has no room left: this conversation will be gone when the page closes.");
}

const say = (text) => { $("status").textContent = text; };

// ---- drawing ---------------------------------------------------------------------------------------------------------

function draw() {
  document.title = `${current.title} · fledgling`;
  $("title").textContent = current.title;
  $("messages").replaceChildren(...path(current).map(messageNode));
  $("messages").scrollTop = $("messages").scrollHeight;
  drawList();
}

function drawList() {
  const kept = conversations.filter((one) => Object.keys(one.nodes).length);
  $("conversations").replaceChildren(...kept.map((one) => {
    const item = document.createElement("li");
    const open = button(one.title, "", () => { stop(); current = one; showSide(false); draw(); });
    open.className = "open";
    if (one.id === current.id) open.setAttribute("aria-current", "true");
    item.append(open, button("×", `Delete ${one.title}`, () => forget(one)));
    return item;
  }));
}

function forget(one) {
  if (!confirm(`Delete "${one.title}"?`)) return;
  if (one.id === current.id) { stop(); current = begin(); }
  conversations = conversations.filter((other) => other.id !== one.id);
  save(conversations);
  draw();
}

function messageNode(node) {
  const box = document.createElement("article");
  box.className = `message ${node.role}`;
  box.dataset.id = node.id;
  box.setAttribute("aria-label", node.role === "user" ? "You" : "The model");
  const who = document.createElement("div");
  who.className = "who";
  who.textContent = node.role === "user" ? "You" : "fledgling";
  const body = document.createElement("div");
  body.className = "body";
  fill(body, node);
  box.append(who, body, toolsNode(node, box));
  return box;
}

function fill(body, node) {
  if (node.role === "user") body.replaceChildren(node.text);
  else body.replaceChildren(shownByToken.has(node.id) ? byToken(node.tokens) : prose(node.parts));
  if (node.failed) {
    const failed = document.createElement("p");
    failed.className = "failed";
    failed.textContent = node.failed;
    body.append(failed);
  }
}

function toolsNode(node, box) {
  const bar = document.createElement("div");
  bar.className = "tools";
  const others = siblings(current, node);
  if (others.length > 1) {
    const place = others.findIndex((other) => other.id === node.id);
    const turn = (by) => { stop(); current.chosen[node.parent] = others.at((place + by) % others.length).id; keep(); draw(); };
    bar.append(button("‹", "Previous version", () => turn(-1)), `${place + 1}/${others.length}`, button("›", "Next version", () => turn(1)));
  }
  if (node.role === "user") bar.append(button("Edit", "", () => edit(node, box)));
  else {
    bar.append(button("Again", "Answer again", () => { stop(); answer(current.nodes[node.parent]); }));
    bar.append(button("Copy", "", () => navigator.clipboard?.writeText(node.text).then(() => say("Copied."))));
    if (node.tokens.length) bar.append(button(shownByToken.has(node.id) ? "Text" : "Probabilities", "", () => {
      shownByToken.has(node.id) ? shownByToken.delete(node.id) : shownByToken.add(node.id);
      draw();
    }));
    if (REASONS[node.reason]) bar.append(REASONS[node.reason]);
  }
  return bar;
}

function edit(node, box) {
  const field = document.createElement("textarea");
  field.className = "editor";
  field.value = node.text;
  field.setAttribute("aria-label", "Edit the message");
  const done = button("Send", "", () => { stop(); submit(field.value, node.parent === "root" ? null : node.parent); });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done.click(); }
    if (event.key === "Escape") { event.stopPropagation(); draw(); }
  });
  box.querySelector(".body").replaceChildren(field);
  box.querySelector(".tools").replaceChildren(done, button("Cancel", "", draw));
  field.focus();
}

// ---- asking ----------------------------------------------------------------------------------------------------------

function submit(text, parent) {
  if (!text.trim()) return;
  answer(add(current, parent, "user", text.trim()));
}

function body(upTo) {
  const turns = [];
  for (const node of path(current)) {
    if (node.role === "user") turns.push({ role: "user", content: node.text });
    else if (node.parts.length) turns.push({ role: "assistant", content: node.text || null, parts: node.parts });
    if (node.id === upTo.id) break;
  }
  if (settings.system.trim()) turns.unshift({ role: "system", content: settings.system });
  const drawn = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "calculator"];
  return {
    messages: turns, logprobs: true, top_logprobs: ALTERNATIVES,
    ...Object.fromEntries(drawn.map((name) => [name, settings[name]])),
    ...(settings.seed === "" ? {} : { seed: Number(settings.seed) }),
  };
}

async function answer(question) {
  const conversation = current;
  const request = body(question);
  const node = add(conversation, question.id, "assistant", "");
  const abort = new AbortController();
  running = { node, abort };
  busy(true);
  keep();
  draw();
  try {
    for await (const chunk of ask(request, settings.key, abort.signal)) {
      take(node, chunk);
      if (current === conversation) redraw(node);
    }
    say("Answered.");
  } catch (problem) {
    if (problem.name === "AbortError") node.reason = "stopped";
    else node.failed = problem instanceof Refused ? problem.message : "The server cannot be reached; is it running?";
    say(node.failed ?? "Stopped.");
  }
  if (!node.parts.length && !node.failed) remove(conversation, node);
  if (running?.node === node) { running = null; busy(false); }
  keep();
  if (current === conversation) draw();
}

function take(node, chunk) {
  node.text += chunk.text;
  node.tokens.push(...chunk.tokens);
  node.reason = chunk.reason ?? node.reason;
  for (const part of chunk.parts) {
    const before = node.parts.at(-1);
    if (before?.type === part.type) before.text += part.text;
    else node.parts.push({ ...part });
  }
}

function redraw(node) {
  const shown = $("messages").querySelector(`[data-id="${CSS.escape(node.id)}"] .body`);
  if (!shown) return;
  const low = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;
  fill(shown, node);
  if (low) $("messages").scrollTop = $("messages").scrollHeight;
}

function stop() {
  running?.abort.abort();
  running = null;
  busy(false);
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (is) say("Answering …");
}

// ---- controls --------------------------------------------------------------------------------------------------------

function showSide(is) {
  $("side").classList.toggle("shown", is);
  $("menu").setAttribute("aria-expanded", String(is));
}

function readSettings() {
  for (const name of Object.keys(DEFAULTS)) {
    const field = $(name);
    const value = field.type === "checkbox" ? field.checked : ["range", "number"].includes(field.type) && field.value !== "" ? Number(field.value) : field.value;
    settings[name] = value === "" && typeof DEFAULTS[name] === "number" ? DEFAULTS[name] : value;
    const shown = $(`${name}-shown`);
    if (shown) shown.textContent = field.value;
  }
  document.documentElement.dataset.theme = settings.theme;
  try {
    localStorage.setItem(KEPT, JSON.stringify({ ...settings, key: "" })); // the key is never written down
  } catch { /* no room: the settings last as long as the page */ }
}

function grow() {
  $("say").style.setProperty("height", "auto");
  $("say").style.setProperty("height", `${$("say").scrollHeight + 2}px`);
}

for (const [name, value] of Object.entries(settings)) {
  const field = $(name);
  if (!field) continue;
  if (field.type === "checkbox") field.checked = Boolean(value);
  else field.value = value;
  field.addEventListener("input", readSettings);
}
readSettings();

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  const text = $("say").value;
  $("say").value = "";
  grow();
  submit(text, path(current).at(-1)?.id);
});
$("say").addEventListener("input", grow);
$("say").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { showSide(false); stop(); } });
$("stop").addEventListener("click", () => { stop(); $("say").focus(); });
$("new").addEventListener("click", () => { stop(); current = begin(); showSide(false); draw(); $("say").focus(); });
$("menu").addEventListener("click", () => showSide(!$("side").classList.contains("shown")));
$("tune").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("tune").setAttribute("aria-expanded", String(!$("settings").hidden));
});

draw();
models(settings.key).then(([name]) => say(`Talking with ${name}.`), (problem) => say(
  problem instanceof Refused ? `${problem.message} (Settings, Key)` : "The server cannot be reached; is it running?"));
