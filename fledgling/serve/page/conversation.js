// A conversation: a tree of messages of which one path is shown. Pure functions; storage is store.js.
// Editing a message or answering again overwrites nothing: the new message becomes a sibling of the old one.
//
//   conversation = {id, title, named, updated, nodes: Map(id -> message), chosen: Map(parent -> child)}
//   message = {id, conversation, parent, role, text, parts, tokens, reason, failed, usage, count, seconds, dropped, pair, label, time}

export const ROOT = "root";
const MAX_MESSAGES = 511; // the server's limit, less a system message
const MAX_BYTES = 900_000; // the server's limit of a body is 1,000,000
const MAX_PARTS = 256; // the server's limit, of one message
const MAX_DEPTH = 20_000;

export const makeId = () => crypto.randomUUID?.() ?? Array.from({ length: 4 }, () => Math.random().toString(36).slice(2)).join("");

export const newConversation = () => ({
  id: makeId(), title: "New conversation", named: false, updated: Date.now(), nodes: new Map(), chosen: new Map(),
});

export function addMessage(conversation, parent, role, text) {
  const node = {
    id: makeId(), conversation: conversation.id, parent: parent ?? ROOT, role, text, parts: [], tokens: [],
    reason: null, failed: null, usage: null, count: 0, seconds: 0, dropped: 0, pair: null, label: "", time: Date.now(),
  };
  conversation.nodes.set(node.id, node);
  conversation.chosen.set(node.parent, node.id);
  conversation.updated = node.time;
  if (role === "user" && node.parent === ROOT && !conversation.named) conversation.title = text.slice(0, 60);
  return node;
}

export function removeMessage(conversation, node) {
  conversation.nodes.delete(node.id);
  if (conversation.chosen.get(node.parent) === node.id) conversation.chosen.delete(node.parent);
}

export const listSiblings = (conversation, node) => listChildren(conversation, node.parent);

function listChildren(conversation, parent) {
  const children = [...conversation.nodes.values()].filter((other) => other.parent === parent);
  return children.sort((a, b) => a.time - b.time || (a.id < b.id ? -1 : 1));
}

// The path from the first message down: at each branch the chosen child, or else the newest.
export function shownPath(conversation) {
  const children = new Map();
  for (const node of conversation.nodes.values()) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  const path = [];
  const seen = new Set();
  for (let parent = ROOT; path.length < MAX_DEPTH; parent = path.at(-1).id) {
    const options = children.get(parent) ?? [];
    const next = options.find((node) => node.id === conversation.chosen.get(parent)) ??
      options.reduce((newest, node) => (newest && newest.time > node.time ? newest : node), null);
    if (!next || seen.has(next.id)) return path;
    seen.add(next.id);
    path.push(next);
  }
  return path;
}

// The messages that a request for an answer to `question` sends. Every message of the user that has an answer is sent
// with it. One without an answer (an error, a stop before the first token, an empty answer) is left out, because
// messages of the user and of the model alternate. Where everything exceeds the server's limits of a request, the
// oldest turns are left out; what exceeds the model's context is dropped by the server (`truncation`), which knows it.
export function requestMessages(conversation, question, system) {
  const turns = [];
  let userMessage = null;
  for (const node of shownPath(conversation)) {
    if (node.role === "user") userMessage = { role: "user", content: node.text.toWellFormed() };
    else if (userMessage && hasAnswer(node)) {
      turns.push([userMessage, answerMessage(node)]);
      userMessage = null;
    }
    if (node.id === question.id) break;
  }
  const last = { role: "user", content: question.text.toWellFormed() };
  const head = system.trim() ? [{ role: "system", content: system.toWellFormed() }] : [];
  const kept = [];
  let bytes = size([...head, last]);
  for (const turn of turns.reverse()) {
    bytes += size(turn);
    if (bytes > MAX_BYTES || 2 * kept.length + 3 > MAX_MESSAGES) break;
    kept.unshift(turn);
  }
  return { messages: [...head, ...kept.flat(), last], omitted: turns.length - kept.length };
}

const encoder = new TextEncoder();
const size = (messages) => encoder.encode(JSON.stringify(messages)).length;

// Whether the model has written something, and whether it is more than a thought, which is not sent back.
export const hasText = (node) => node.role === "assistant" && node.parts.some((part) => part.text);
export const hasAnswer = (node) => node.role === "assistant" && node.parts.some(isAnswer);
const isAnswer = ({ type, text }) => text && type !== "thinking";

export function answerMessage(node) {
  const parts = node.parts.filter(isAnswer).map(({ type, text }) => ({ type, text: text.toWellFormed() }));
  const plain = parts.every((part) => part.type === "text");
  if (!plain && parts.length <= MAX_PARTS) return { role: "assistant", content: null, parts };
  return { role: "assistant", content: parts.filter((part) => part.type === "text").map((part) => part.text).join("") || "…" };
}

export function appendChunk(node, chunk) {
  node.text += chunk.text;
  node.tokens.push(...chunk.tokens);
  node.reason = chunk.reason ?? node.reason;
  node.usage = chunk.usage ?? node.usage;
  node.dropped = chunk.dropped || node.dropped;
  for (const { type, text, index } of chunk.parts) { // a part with another index is another part
    const before = node.parts.at(-1);
    if (before?.type === type && before.index === index) before.text += text;
    else node.parts.push({ type, text, index });
  }
  for (const { name, args } of chunk.calls) { // of a tool that the request offered: its text is as the model wrote it
    if (name !== null) node.parts.push({ type: "python", tool: String(name), args: "", text: "" });
    const call = node.parts.at(-1);
    if (!call?.tool) continue;
    call.args += args;
    call.text = `{"name": ${JSON.stringify(call.tool)}, "arguments": ${call.args}}`;
  }
}

// The call that an answer ends with, which has no output yet; null where there is none.
export const openCall = (node) => (node.parts.at(-1)?.tool ? node.parts.at(-1) : null);

// ---- files ---------------------------------------------------------------------------------------------------------

const text = (value, most) => (typeof value === "string" ? value.slice(0, most) : "");
const MAX_TEXT = 2_000_000;
const ROLES = ["user", "assistant"];
const PART_TYPES = ["text", "python", "output", "thinking"];

// Conversations as a file holds them; what a message lacks or has in another type becomes its default.
export const toRecord = (conversation) => ({
  id: conversation.id, title: conversation.title, named: conversation.named, updated: conversation.updated,
  chosen: Object.fromEntries(conversation.chosen), nodes: Object.fromEntries(conversation.nodes),
});

// Returns a conversation from a record of a file or of an earlier version of the page; null where it is not one.
export function fromRecord(record) {
  if (!record || typeof record !== "object" || typeof record.id !== "string" || !record.nodes || typeof record.nodes !== "object") return null;
  const conversation = newConversation();
  conversation.id = record.id.slice(0, 100);
  conversation.title = text(record.title, 200) || conversation.title;
  conversation.named = record.named === true;
  conversation.updated = Number.isFinite(record.updated) ? record.updated : Date.now();
  let time = conversation.updated - Object.keys(record.nodes).length;
  for (const node of Object.values(record.nodes)) {
    if (!node || typeof node.id !== "string" || typeof node.parent !== "string" || !ROLES.includes(node.role)) continue;
    conversation.nodes.set(node.id, {
      id: node.id, conversation: conversation.id, parent: node.parent, role: node.role, text: text(node.text, MAX_TEXT),
      parts: readParts(node),
      tokens: (Array.isArray(node.tokens) ? node.tokens : []).filter(isToken),
      reason: text(node.reason, 40) || null, failed: text(node.failed, 2000) || null, usage: readUsage(node.usage),
      count: Number(node.count) || 0, seconds: Number(node.seconds) || 0, dropped: Number(node.dropped) || 0, pair: text(node.pair, 100) || null,
      label: text(node.label, 200), time: Number.isFinite(node.time) ? node.time : time++,
    });
  }
  for (const [parent, child] of Object.entries(record.chosen ?? {})) conversation.chosen.set(parent, String(child));
  return conversation;
}

// The parts of a message; an answer that has a text alone is that text.
function readParts(node) {
  const parts = (Array.isArray(node.parts) ? node.parts : [])
    .filter((part) => PART_TYPES.includes(part?.type) && typeof part.text === "string")
    .map((part) => ({ type: part.type, text: part.text.slice(0, MAX_TEXT) }));
  const prose = text(node.text, MAX_TEXT);
  return node.role === "assistant" && !parts.length && prose ? [{ type: "text", text: prose }] : parts;
}

// Deletes the messages that no path from the start leads to: of a parent that is missing, or in a cycle.
export function dropUnreachable({ nodes }) {
  const children = new Map();
  for (const node of nodes.values()) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  const reached = new Set();
  const open = [ROOT];
  while (open.length) {
    for (const node of children.get(open.pop()) ?? []) {
      if (node.id === ROOT || reached.has(node.id)) continue;
      reached.add(node.id);
      open.push(node.id);
    }
  }
  for (const id of [...nodes.keys()]) if (!reached.has(id)) nodes.delete(id);
}

const isToken = (token) => token && typeof token.token === "string" && typeof token.logprob === "number" &&
  Array.isArray(token.top_logprobs) && token.top_logprobs.every((other) => typeof other?.token === "string" && typeof other.logprob === "number");

const readUsage = (usage) => (Number.isFinite(usage?.prompt_tokens) && Number.isFinite(usage?.completion_tokens)
  ? { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens } : null);
