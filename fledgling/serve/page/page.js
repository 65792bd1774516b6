// The page: the shown conversation, its branches, and answers in progress. Everything on the screen is rendered from
// the conversation (conversation.js), the settings (settings.js) and the list (sidebar.js).

import { describeConnection, listModels } from "./api.js";
import { generateAnswer } from "./answer.js";
import { addMessage, hasText, listSiblings, makeId, newConversation, removeMessage, shownPath } from "./conversation.js";
import { addCopyButtons, makeButton, makeElement, renderParts, renderTokens } from "./message.js";
import { bindSettings, getSideLabel, offerModels, requestFields, settings, getSystemPrompt } from "./settings.js";
import { makeSidebar } from "./sidebar.js";
import { listConversations, loadMessages, onChangeInOtherTab, openStore, saveMessages } from "./store.js";
import { offeredTools, readTools } from "./tools.js";

const $ = (id) => document.getElementById(id);
const REASONS = { length: "cut: the maximum length or the context is reached", stopped: "stopped" };
const UNSAVED = "The browser does not store this conversation: it is lost when the page closes.";

let current = newConversation();
let models = [];
const running = new Map(); // id of a message that is generated -> its AbortController
const shownByToken = new Set(); // ids of messages shown token by token
let frame = 0; // the animation frame that shows new text

const showStatus = (text) => { $("status").textContent = text; };
const save = (nodes) => saveMessages(current, nodes).catch(() => showStatus(UNSAVED));

// ---- rendering -------------------------------------------------------------------------------------------------------

function render() {
  const path = shownPath(current);
  document.title = `${current.title} · fledgling`;
  $("title").textContent = current.title;
  $("messages").replaceChildren(...path.map((node) => (node.pair ? pairNode(node) : messageNode(node))));
  if (!path.length) $("messages").append(examplesNode());
  if (path.at(-1)?.role === "user" && !running.size) $("messages").append(
    makeButton("Answer", "Answer the last message", () => answer(path.at(-1))));
  $("messages").scrollTop = $("messages").scrollHeight;
  showMeter(path);
  sidebar.render();
}

// Two answers to one question, each by its own setting; the conversation continues with the one that is chosen.
function pairNode(node) {
  const box = makeElement("div", "pair");
  const pair = listSiblings(current, node).filter((other) => other.pair === node.pair).reverse(); // the first setting left
  box.append(...pair.map((other) => {
    const shown = messageNode(other);
    shown.classList.toggle("chosen", other.id === node.id);
    if (other.id !== node.id) shown.querySelector(".tools").prepend(makeButton("Continue with this one", "", () => choose(other)));
    return shown;
  }));
  return box;
}

function choose(node) {
  stop();
  current.chosen.set(node.parent, node.id);
  save([]);
  render();
}

function messageNode(node) {
  const box = makeElement("article", `message ${node.role}`);
  box.dataset.id = node.id;
  const who = node.role === "user" ? "You" : `fledgling${node.label ? ` · ${node.label}` : ""}`;
  box.setAttribute("aria-label", node.role === "user" ? "You" : "The model");
  if (node.withoutTools) box.append(makeElement("p", "notice", "The tools do not fit into the model's context: it answered without them."));
  if (node.dropped) box.append(makeElement("p", "notice", "The conversation exceeds the model's context: " +
    (node.dropped === 1 ? "the oldest turn was dropped." : `the ${node.dropped} oldest turns were dropped.`)));
  const body = makeElement("div", "body");
  fillBody(body, node);
  box.append(makeElement("div", "who", who), body, toolbarNode(node, box));
  return box;
}

function fillBody(body, node) {
  if (node.role === "user") return body.replaceChildren(node.text);
  body.replaceChildren(shownByToken.has(node.id) ? renderTokens(node.tokens) : renderParts(node.parts, running.has(node.id)));
  if (!running.has(node.id)) addCopyButtons(body, () => showStatus("Copied."));
  if (node.failed) body.append(makeElement("p", "failed", node.failed));
}

function toolbarNode(node, box) {
  const bar = makeElement("div", "tools");
  const others = listSiblings(current, node);
  if (others.length > 1 && !node.pair) {
    const place = others.findIndex((other) => other.id === node.id);
    const turn = (by) => choose(others.at((place + by) % others.length));
    bar.append(makeButton("‹", "Previous version", () => turn(-1)), `${place + 1}/${others.length}`, makeButton("›", "Next version", () => turn(1)));
  }
  if (node.role === "user") {
    bar.append(makeButton("Edit", "", () => editMessage(node, box)));
    return bar;
  }
  const question = current.nodes.get(node.parent);
  if (question?.role === "user") bar.append(makeButton("Again", "Answer again", () => answer(question)));
  bar.append(makeButton("Copy", "Copy the answer", () => navigator.clipboard?.writeText(node.text).then(() => showStatus("Copied."))));
  if (node.tokens.length) bar.append(makeButton(shownByToken.has(node.id) ? "Text" : "Probabilities", "", () => {
    if (!shownByToken.delete(node.id)) shownByToken.add(node.id);
    render();
  }));
  const count = node.count || (node.usage?.completion_tokens ?? node.tokens.length);
  if (node.seconds > 0 && count > 1) bar.append(makeElement("span", "speed", `${count} tokens in ${node.seconds.toPrecision(2)} s, ${(count / node.seconds).toFixed(0)} a second`));
  const unfinished = !node.reason && !node.failed && !running.has(node.id) ? "unfinished" : "";
  bar.append(REASONS[node.reason] ?? unfinished);
  return bar;
}

function examplesNode() {
  const box = makeElement("div", "examples");
  const examples = models[0]?.examples ?? [];
  if (examples.length) box.append(makeElement("p", "", "What this model was taught to answer:"));
  box.append(...examples.map((text) => makeButton(text, "", () => sendMessage(text, null))));
  return box;
}

// How full the model's context was at the last answer.
function showMeter(path) {
  const usage = path.findLast((node) => node.usage)?.usage;
  const context = (models.find(({ id }) => id === settings.model) ?? models[0])?.max_model_len;
  $("context").hidden = !usage || !context;
  if (!usage || !context) return;
  const used = usage.prompt_tokens + usage.completion_tokens;
  $("context-meter").max = context;
  $("context-meter").value = used;
  $("context-text").textContent = `${used} of ${context} tokens`;
}

function editMessage(node, box) {
  const field = makeElement("textarea", "editor");
  field.value = node.text;
  field.setAttribute("aria-label", "Edit the message");
  const done = makeButton("Send", "", () => sendMessage(field.value, node.parent));
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
  stop();
  const question = addMessage(current, parent, "user", text.trim());
  save([question]);
  answer(question);
}

function answer(question) {
  stop();
  const pair = settings.compare ? makeId() : null;
  for (const side of pair ? ["b", ""] : [""]) generate(question, side, pair); // the first setting's is shown as chosen
}

async function generate(question, side, pair) {
  const conversation = current;
  const node = Object.assign(addMessage(conversation, question.id, "assistant", ""), { pair, label: pair ? getSideLabel(side) : "" });
  const abort = new AbortController();
  running.set(node.id, abort);
  setGenerating();
  render();
  const problem = await generateAnswer({
    conversation, question, node, fields: { ...requestFields(side), ...toolFields() }, system: getSystemPrompt(side), key: settings.key,
    signal: abort.signal, changed: () => { if (current === conversation) scheduleBodyUpdate(node); },
  });
  running.delete(node.id);
  if (!hasText(node) && !node.failed) removeMessage(conversation, node);
  setGenerating();
  showStatus(problem ? UNSAVED : node.failed ?? (node.reason === "stopped" ? "Stopped." : "Answer complete."));
  if (node.failed) readModels().catch(() => {}); // it may be another server by now, with other models
  if (current === conversation && !document.querySelector(".editor")) render();
}

function toolFields() {
  const tools = settings.tools ? offeredTools() : [];
  return tools.length ? { tools, parallel_tool_calls: false } : {};
}

// Shows new text with the next frame of the screen: many chunks may arrive before it.
function scheduleBodyUpdate(node) {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const id of running.keys()) updateBody(current.nodes.get(id));
  });
  if (!running.has(node.id)) updateBody(node);
}

function updateBody(node) {
  const shown = node && $("messages").querySelector(`[data-id="${CSS.escape(node.id)}"] .body`);
  if (!shown) return;
  const low = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;
  fillBody(shown, node);
  if (low) $("messages").scrollTop = $("messages").scrollHeight;
}

function stop() {
  for (const abort of running.values()) abort.abort();
  running.clear();
  setGenerating();
}

function setGenerating() {
  $("send").hidden = running.size > 0;
  $("stop").hidden = !running.size;
  if (running.size) showStatus("Generating …");
}

// ---- controls ------------------------------------------------------------------------------------------------------

function showSidebar(visible) {
  $("side").classList.toggle("shown", visible);
  $("menu").setAttribute("aria-expanded", String(visible));
}

function resizeField() {
  $("message").style.setProperty("height", "auto");
  $("message").style.setProperty("height", `${$("message").scrollHeight + 2}px`);
}

function open(conversation) {
  if (conversation !== current) stop();
  current = conversation;
  showSidebar(false);
  render();
}

function openNew() {
  open(newConversation());
  $("message").focus();
}

const sidebar = makeSidebar({
  current: () => current, open, status: showStatus,
  renamed: (conversation) => { if (conversation.id === current.id) { current.title = conversation.title; render(); } },
});

async function followOtherTab({ saved, deleted }) {
  if (deleted === current.id) await save([...current.nodes.values()].filter((node) => node.role === "user" || hasText(node)));
  if (saved !== current.id) return sidebar.render();
  await loadMessages(current, new Set(running.keys()));
  if (running.size || document.querySelector(".editor")) return sidebar.render(); // shown when the answer has ended
  render();
}

async function readModels() {
  models = await listModels(settings.key);
  offerModels(models);
}

async function connect() {
  try {
    await Promise.all([readModels(), readTools(settings.key)]);
    showStatus(await describeConnection(models));
    if (!current.nodes.size) render();
  } catch (error) {
    showStatus(`${error.message}${error.code === "invalid_api_key" ? " (Settings, API key)" : ""}`);
  }
}

function bindControls() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running.size) return;
    const text = $("message").value;
    $("message").value = "";
    resizeField();
    sendMessage(text, shownPath(current).findLast((node) => node.role === "user" || hasText(node))?.id);
  });
  $("message").addEventListener("input", resizeField);
  $("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
    const last = $("messages").querySelector(".message.user:nth-last-of-type(-n+2) .tools button:last-child");
    if (event.key === "ArrowUp" && !$("message").value && last) { event.preventDefault(); last.click(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { showSidebar(false); stop(); }
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.key === "k") { event.preventDefault(); showSidebar(true); $("search").focus(); }
    if (event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); openNew(); }
  });
  $("stop").addEventListener("click", () => { stop(); $("message").focus(); });
  $("new").addEventListener("click", openNew);
  $("menu").addEventListener("click", () => showSidebar(!$("side").classList.contains("shown")));
  $("key").addEventListener("change", connect);
  addEventListener("pagehide", () => { // an answer in progress is stored as far as it has come
    const nodes = [...running.keys()].map((id) => current.nodes.get(id)).filter((node) => node && hasText(node));
    if (nodes.length) save(nodes);
  });
  $("settings-button").addEventListener("click", () => {
    $("settings").hidden = !$("settings").hidden;
    $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
  });
}

async function start() {
  bindSettings(showStatus);
  bindControls();
  const stored = await openStore();
  const [newest] = await listConversations();
  if (newest && !current.nodes.size) current = await loadMessages({ ...newConversation(), ...newest });
  onChangeInOtherTab(followOtherTab);
  render();
  await connect();
  if (!stored) showStatus(UNSAVED);
}

start();
