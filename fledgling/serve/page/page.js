// The page: a conversation, its branches, and the sampling settings. The state is the conversations of `store.js` and
// `settings`; everything on the screen is rendered from these two.

import { streamAnswer, listModels, RequestError } from "./api.js";
import { makeButton, renderTokens, renderParts } from "./message.js";
import { addMessage, newConversation, loadConversations, shownPath, removeMessage, saveConversations, listSiblings } from "./store.js";

const $ = (id) => document.getElementById(id);
const DEFAULTS = {
  temperature: 0.8, top_p: 1, top_k: 50, min_p: 0, repetition_penalty: 1, max_tokens: 256, seed: "", system: "", key: "",
  calculator: true, theme: "auto",
};
const SETTINGS_KEY = "fledgling.settings";
const ALTERNATIVES = 4;
const REASONS = { length: "cut: the maximum length or the context is reached", stopped: "stopped" };

let settings = { ...DEFAULTS };
try {
  settings = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS_KEY) ?? "{}") };
} catch { /* unreadable settings are the defaults */ }

let conversations = loadConversations();
let current = conversations[0] ?? newConversation();
let running = null; // {node, abort} while an answer is generated
const shownByToken = new Set(); // ids of messages shown token by token

function storeConversations() {
  conversations = [current, ...conversations.filter((other) => other.id !== current.id)];
  if (!saveConversations(conversations.filter((conversation) => Object.keys(conversation.nodes).length)))
    showStatus("The browser's storage is full: this conversation is lost when the page closes.");
}

const showStatus = (text) => { $("status").textContent = text; };

// ---- rendering -------------------------------------------------------------------------------------------------------

function render() {
  document.title = `${current.title} · fledgling`;
  $("title").textContent = current.title;
  $("messages").replaceChildren(...path(current).map(messageNode));
  $("messages").scrollTop = $("messages").scrollHeight;
  renderList();
}

function renderList() {
  const kept = conversations.filter((conversation) => Object.keys(conversation.nodes).length);
  $("conversations").replaceChildren(...kept.map((conversation) => {
    const item = document.createElement("li");
    const open = makeButton(conversation.title, "", () => { stop(); current = conversation; showSidebar(false); render(); });
    open.className = "open";
    if (conversation.id === current.id) open.setAttribute("aria-current", "true");
    item.append(open, makeButton("×", `Delete ${conversation.title}`, () => deleteConversation(conversation)));
    return item;
  }));
}

function deleteConversation(conversation) {
  if (!confirm(`Delete "${conversation.title}"?`)) return;
  if (conversation.id === current.id) { stop(); current = newConversation(); }
  conversations = conversations.filter((other) => other.id !== conversation.id);
  saveConversations(conversations);
  render();
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
  fillBody(body, node);
  box.append(who, body, toolbarNode(node, box));
  return box;
}

function fillBody(body, node) {
  if (node.role === "user") body.replaceChildren(node.text);
  else body.replaceChildren(shownByToken.has(node.id) ? renderTokens(node.tokens) : renderParts(node.parts));
  if (node.failed) {
    const failed = document.createElement("p");
    failed.className = "failed";
    failed.textContent = node.failed;
    body.append(failed);
  }
}

function toolbarNode(node, box) {
  const bar = document.createElement("div");
  bar.className = "tools";
  const others = listSiblings(current, node);
  if (others.length > 1) {
    const place = others.findIndex((other) => other.id === node.id);
    const turn = (by) => { stop(); current.chosen[node.parent] = others.at((place + by) % others.length).id; storeConversations(); render(); };
    bar.append(makeButton("‹", "Previous version", () => turn(-1)), `${place + 1}/${others.length}`, makeButton("›", "Next version", () => turn(1)));
  }
  if (node.role === "user") bar.append(makeButton("Edit", "", () => editMessage(node, box)));
  else {
    bar.append(makeButton("Again", "Answer again", () => { stop(); generateAnswer(current.nodes[node.parent]); }));
    bar.append(makeButton("Copy", "", () => navigator.clipboard?.writeText(node.text).then(() => showStatus("Copied."))));
    if (node.tokens.length) bar.append(makeButton(shownByToken.has(node.id) ? "Text" : "Probabilities", "", () => {
      shownByToken.has(node.id) ? shownByToken.delete(node.id) : shownByToken.add(node.id);
      render();
    }));
    if (REASONS[node.reason]) bar.append(REASONS[node.reason]);
  }
  return bar;
}

function editMessage(node, box) {
  const field = document.createElement("textarea");
  field.className = "editor";
  field.value = node.text;
  field.setAttribute("aria-label", "Edit the message");
  const done = makeButton("Send", "", () => { stop(); sendMessage(field.value, node.parent === "root" ? null : node.parent); });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done.click(); }
    if (event.key === "Escape") { event.stopPropagation(); render(); }
  });
  box.querySelector(".body").replaceChildren(field);
  box.querySelector(".tools").replaceChildren(done, makeButton("Cancel", "", render));
  field.focus();
}

// ---- answers --------------------------------------------------------------------------------------------------------

function sendMessage(text, parent) {
  if (!text.trim()) return;
  generateAnswer(addMessage(current, parent, "user", text.trim()));
}

function requestBody(upTo) {
  const turns = [];
  for (const node of shownPath(current)) {
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

async function generateAnswer(question) {
  const conversation = current;
  const request = requestBody(question);
  const node = addMessage(conversation, question.id, "assistant", "");
  const abort = new AbortController();
  running = { node, abort };
  setGenerating(true);
  storeConversations();
  render();
  try {
    for await (const chunk of streamAnswer(request, settings.key, abort.signal)) {
      appendChunk(node, chunk);
      if (current === conversation) updateBody(node);
    }
    showStatus("Answer complete.");
  } catch (error) {
    if (error.name === "AbortError") node.reason = "stopped";
    else node.failed = error instanceof RequestError ? error.message : "The server cannot be reached; is it running?";
    showStatus(node.failed ?? "Stopped.");
  }
  if (!node.parts.length && !node.failed) removeMessage(conversation, node);
  if (running?.node === node) { running = null; setGenerating(false); }
  storeConversations();
  if (current === conversation) render();
}

function appendChunk(node, chunk) {
  node.text += chunk.text;
  node.tokens.push(...chunk.tokens);
  node.reason = chunk.reason ?? node.reason;
  for (const part of chunk.parts) {
    const before = node.parts.at(-1);
    if (before?.type === part.type) before.text += part.text;
    else node.parts.push({ ...part });
  }
}

function updateBody(node) {
  const shown = $("messages").querySelector(`[data-id="${CSS.escape(node.id)}"] .body`);
  if (!shown) return;
  const low = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;
  fillBody(shown, node);
  if (low) $("messages").scrollTop = $("messages").scrollHeight;
}

function stop() {
  running?.abort.abort();
  running = null;
  setGenerating(false);
}

function setGenerating(generating) {
  $("send").hidden = generating;
  $("stop").hidden = !generating;
  if (generating) showStatus("Generating …");
}

// ---- controls ------------------------------------------------------------------------------------------------------

function showSidebar(visible) {
  $("side").classList.toggle("shown", visible);
  $("menu").setAttribute("aria-expanded", String(visible));
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
    localStorage.setItem(SETTINGS_KEY, JSON.stringify({ ...settings, key: "" })); // the API key is never stored
  } catch { /* storage is full: the settings last until the page closes */ }
}

function resizeField() {
  $("message").style.setProperty("height", "auto");
  $("message").style.setProperty("height", `${$("message").scrollHeight + 2}px`);
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
  const text = $("message").value;
  $("message").value = "";
  resizeField();
  sendMessage(text, shownPath(current).at(-1)?.id);
});
$("message").addEventListener("input", resizeField);
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { showSidebar(false); stop(); } });
$("stop").addEventListener("click", () => { stop(); $("message").focus(); });
$("new").addEventListener("click", () => { stop(); current = newConversation(); showSidebar(false); render(); $("message").focus(); });
$("menu").addEventListener("click", () => showSidebar(!$("side").classList.contains("shown")));
$("settings-button").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
});

render();
listModels(settings.key).then(([name]) => showStatus(`Connected to ${name}.`), (error) => showStatus(
  error instanceof RequestError ? `${error.message} (Settings, API key)` : "The server cannot be reached; is it running?"));
