// The list of conversations: open, search, rename, delete, export and import.

import { dropUnreachable, fromRecord, newConversation, toRecord } from "./conversation.js";
import { makeButton, makeElement } from "./message.js";
import { deleteConversation, listConversations, loadMessages, saveMessages, searchConversations } from "./store.js";

const MAX_SHOWN = 500;
const MAX_FILE_BYTES = 50_000_000;
const FORMAT = "fledgling.conversations";
const VERSION = 1;
const $ = (id) => document.getElementById(id);

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

// Returns the conversations of a file's text, how many and how many of their messages cannot be read, or the problem of
// the whole file.
function readConversations(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { problem: text.trim() ? `it is not JSON (${error.message})` : "it is empty" };
  }
  if (value?.format !== FORMAT) return { problem: "it is JSON of something else" };
  if (value.version !== VERSION) return { problem: `it is of version ${JSON.stringify(value.version)}, and this page reads ${VERSION}` };
  if (!Array.isArray(value.conversations)) return { problem: "it has no list of conversations" };
  const conversations = [];
  let messages = 0; // that are left out of conversations with others
  for (const record of value.conversations) {
    const conversation = fromRecord(record);
    if (!conversation) continue;
    dropUnreachable(conversation);
    const left = Object.keys(record.nodes).length - conversation.nodes.size;
    if (left && !conversation.nodes.size) continue; // nothing of it can be shown
    conversations.push(conversation);
    messages += left;
  }
  return { conversations, unreadable: value.conversations.length - conversations.length, messages };
}

// `host` gives the current conversation and does what the list asks for: current(), open(conversation), status(text).
export function makeSidebar(host) {
  let heads = [];
  let renders = 0;
  let renamed = null; // {id, item} of the conversation whose title is typed

  async function render() {
    const number = ++renders;
    const wanted = $("search").value.trim();
    const found = wanted ? await searchConversations(wanted) : null;
    const stored = await listConversations();
    if (number !== renders) return; // a later call shows a later state
    heads = stored;
    const current = host.current();
    if (current.nodes.size && !heads.some(({ id }) => id === current.id)) heads.unshift(current); // not stored
    if (!heads.some(({ id }) => id === renamed?.id)) renamed = null; // another tab has deleted it
    const shown = heads.filter(({ id }) => !found || found.has(id)).slice(0, MAX_SHOWN);
    fillList(shown.map((head) => (head.id === renamed?.id ? renamed.item : itemNode(head))));
    $("found").textContent = wanted ? `${shown.length} found` : "";
  }

  // Shows these items. At most one is shown already, and is not taken out: its field keeps what is typed, and the keyboard.
  function fillList(items) {
    const list = $("conversations");
    const kept = new Set(items);
    for (const item of [...list.children]) if (!kept.has(item)) item.remove();
    items.forEach((item, place) => {
      if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
    });
  }

  function itemNode(head) {
    const item = makeElement("li");
    const open = makeButton(head.title, "", async () => host.open(await load(head)));
    open.className = "open";
    if (head.id === host.current().id) open.setAttribute("aria-current", "true");
    item.append(open, makeButton("✎", `Rename ${head.title}`, () => rename(item, head)));
    item.append(makeButton("×", `Delete ${head.title}`, () => remove(head)));
    return item;
  }

  // The current conversation is the object that answers are written to; any other is read from the database.
  const load = async (head) => (head.id === host.current().id ? host.current() : loadMessages({ ...newConversation(), ...head }));

  function rename(item, head) {
    const field = makeElement("input");
    field.value = head.title;
    field.maxLength = 200;
    field.setAttribute("aria-label", "Title");
    field.addEventListener("keydown", async (event) => {
      if (event.key === "Escape") { event.stopPropagation(); renamed = null; render(); }
      if (event.key !== "Enter" || event.isComposing || !field.value.trim()) return;
      const conversation = await load(heads.find(({ id }) => id === head.id) ?? head); // as it was last stored
      Object.assign(conversation, { title: field.value.trim(), named: true });
      await saveMessages(conversation, []);
      renamed = null;
      host.renamed(conversation);
      render();
    });
    renamed = { id: head.id, item };
    item.replaceChildren(field);
    field.focus();
    field.select();
    render(); // closes another field
  }

  async function remove(head) {
    if (!confirm(`Delete "${head.title}"?`)) return;
    if (head.id === host.current().id) host.open(newConversation());
    await deleteConversation(head.id);
    render();
  }

  async function exportAll() {
    const all = await Promise.all((await listConversations()).map(load));
    const text = JSON.stringify({ format: FORMAT, version: VERSION, conversations: all.map(toRecord) });
    const link = makeElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `conversations-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    host.status(`${count(all.length, "conversation")} exported.`);
  }

  async function importFile(file) {
    const { problem, conversations, unreadable, messages } = file.size > MAX_FILE_BYTES
      ? { problem: `it has ${file.size.toLocaleString("en")} bytes, and at most ${MAX_FILE_BYTES.toLocaleString("en")} are read` }
      : readConversations(await file.text());
    if (problem) return host.status(`${file.name} cannot be imported: ${problem}. Expected a file that Export made.`);
    for (const conversation of conversations) {
      await loadMessages(conversation); // messages that are stored already stay as they are
      await saveMessages(conversation, conversation.nodes.values());
    }
    const left = unreadable ? ` ${unreadable} of the file ${unreadable === 1 ? "is no conversation and was" : "are no conversations and were"} left out.` : "";
    const cut = messages ? ` ${count(messages, "message")} without a valid role, id or parent left out.` : "";
    host.status(`${count(conversations.length, "conversation")} imported.${left}${cut}`);
    return render();
  }

  $("search").addEventListener("input", render);
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    if ($("file").files[0]) await importFile($("file").files[0]);
    $("file").value = "";
  });
  return { render };
}
