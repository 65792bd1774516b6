// Conversations in the browser's database (IndexedDB). Every message is a record of its own: two tabs that write to the
// same conversation add records and overwrite none. Where there is no database, conversations last until the page closes.

import { fromRecord } from "./conversation.js";

const NAME = `fledgling${document.documentElement.dataset.store ?? ""}`; // pages in files share one origin
const OLD_KEY = `${NAME}.conversations`; // where an earlier version of the page kept everything
const JOURNAL = `${NAME}.unsaved.`; // followed by a message's id: what a reload would take before it is committed
const STORES = ["conversations", "messages"];

let database = null;
let opened = Promise.resolve(false); // what is written before the database is open waits for it
const memory = new Map(); // conversations, where there is no database
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;

// Opens the database; returns false where conversations cannot be stored.
export function openStore() {
  opened = openDatabase();
  return opened.then((stored) => stored && importJournal().then(importOldStorage).then(() => true, () => true));
}

async function openDatabase() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: ["conversation", "id"] });
    };
    database = await promise(request);
    database.onversionchange = () => database.close();
    return true;
  } catch {
    database = null;
    return false;
  }
}

const promise = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = request.onblocked = () => reject(request.error);
});

// Runs `work(conversations, messages)` in one transaction; resolves when it is committed.
function write(work) {
  if (!database) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORES, "readwrite", { durability: "strict" });
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
    work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
    transaction.commit?.(); // at once: a page that is closed now would otherwise abort it
  });
}

const messagesOf = (id) => IDBKeyRange.bound([id], [id, []]); // an array is above every text

const headOf = ({ id, title, named, updated, chosen }) => ({ id, title, named, updated, chosen });

// Stores a conversation's head and the given messages. A message of the user is kept at once, without waiting for the
// database, until it is committed: a reload right after it was sent does not lose it.
export async function saveMessages(conversation, nodes) {
  nodes = [...nodes];
  const keys = nodes.filter(({ role }) => role === "user").map((node) => keepInJournal(conversation, node));
  await opened;
  if (!database) memory.set(conversation.id, conversation);
  await write((conversations, messages) => {
    conversations.put(headOf(conversation));
    for (const node of nodes) messages.put(node);
  });
  for (const key of database ? keys : []) localStorage.removeItem(key);
  channel?.postMessage({ saved: conversation.id });
}

export async function deleteConversation(id) {
  memory.delete(id);
  await write((conversations, messages) => {
    conversations.delete(id);
    messages.delete(messagesOf(id));
  });
  channel?.postMessage({ deleted: id });
}

// Returns the stored conversations without their messages, the newest first.
export async function listConversations() {
  const heads = database ? await promise(database.transaction("conversations").objectStore("conversations").getAll()) : memory.values();
  return [...heads].sort((a, b) => b.updated - a.updated);
}

// Fills in a conversation's stored title and messages. Messages that this tab is writing keep their state.
export async function loadMessages(conversation, writing = new Set()) {
  if (!database) return memory.get(conversation.id) ?? conversation;
  const transaction = database.transaction(STORES);
  const messages = transaction.objectStore("messages");
  const head = await promise(transaction.objectStore("conversations").get(conversation.id));
  if (head) Object.assign(conversation, { title: head.title, named: head.named });
  if (head && !conversation.chosen.size) conversation.chosen = head.chosen;
  for (const node of await promise(messages.getAll(messagesOf(conversation.id))))
    if (!writing.has(node.id)) conversation.nodes.set(node.id, node);
  return conversation;
}

// Returns the ids of the conversations in which a text occurs, in a title or a message.
export async function searchConversations(text) {
  const wanted = text.toLowerCase();
  const found = new Set();
  for (const head of await listConversations()) if (head.title.toLowerCase().includes(wanted)) found.add(head.id);
  if (!database) return found;
  await new Promise((resolve) => {
    database.transaction("messages").objectStore("messages").openCursor().onsuccess = ({ target }) => {
      if (!target.result) return resolve();
      const node = target.result.value;
      if (node.text.toLowerCase().includes(wanted)) found.add(node.conversation);
      target.result.continue();
    };
  });
  return found;
}

// Calls `changed({saved: id} or {deleted: id})` when another tab has written.
export function onChangeInOtherTab(changed) {
  if (channel) channel.onmessage = ({ data }) => changed(data);
}

function keepInJournal(conversation, node) {
  const key = JOURNAL + node.id;
  try {
    localStorage.setItem(key, JSON.stringify({ ...headOf(conversation), chosen: {}, nodes: { [node.id]: node } }));
  } catch { /* storage is full: the database alone keeps it */ }
  return key;
}

async function importJournal() {
  for (const key of Object.keys(localStorage).filter((name) => name.startsWith(JOURNAL))) {
    try {
      const conversation = fromRecord(JSON.parse(localStorage.getItem(key)));
      const nodes = conversation ? [...conversation.nodes.values()] : [];
      if (conversation) await loadMessages(conversation); // the title and the answers that are stored
      if (nodes.length) await saveMessages(conversation, nodes);
    } catch { /* not a message */ }
    localStorage.removeItem(key);
  }
}

async function importOldStorage() {
  let records;
  try {
    records = JSON.parse(localStorage.getItem(OLD_KEY) ?? "[]");
  } catch {
    return;
  }
  if (!Array.isArray(records) || !records.length) return;
  let updated = Date.now();
  for (const conversation of records.map(fromRecord)) {
    if (!conversation) continue;
    conversation.updated = updated--;
    await saveMessages(conversation, conversation.nodes.values());
  }
  localStorage.removeItem(OLD_KEY);
}
