// Conversations in the browser's storage: each is a tree of messages, and one path through it is shown.
// Editing a message or answering again overwrites nothing: the new message becomes a sibling of the old one.
//
//   conversation = {id, title, nodes: {id: {id, parent, role, text, parts, tokens, reason}}, chosen: {parent: child}}

const STORAGE_KEY = "fledgling.conversations";
const MAX_CONVERSATIONS = 200; // conversations stored
const ROOT = "root";

const makeId = () => crypto.randomUUID?.() ?? String(Math.random()).slice(2);

function isValid(conversation) {
  return conversation && typeof conversation.id === "string" && typeof conversation.title === "string" &&
    conversation.nodes && typeof conversation.nodes === "object" && conversation.chosen && typeof conversation.chosen === "object";
}

export function loadConversations() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "[]");
    return Array.isArray(stored) ? stored.filter(isValid) : [];
  } catch {
    return [];
  }
}

// Returns false where the storage is full; the page then shows a notice and works without it.
export function saveConversations(conversations) {
  try {
    localStorage.setItem(STORAGE_KEY, JSON.stringify(conversations.slice(0, MAX_CONVERSATIONS)));
    return true;
  } catch {
    return false;
  }
}

export const newConversation = () => ({ id: makeId(), title: "New conversation", nodes: {}, chosen: {} });

export function addMessage(conversation, parent, role, text) {
  const node = { id: makeId(), parent: parent ?? ROOT, role, text, parts: [], tokens: [], reason: null };
  conversation.nodes[node.id] = node;
  conversation.chosen[node.parent] = node.id;
  if (role === "user" && node.parent === ROOT) conversation.title = text.slice(0, 60);
  return node;
}

export function removeMessage(conversation, node) {
  delete conversation.nodes[node.id];
  const left = listSiblings(conversation, node);
  if (left.length) conversation.chosen[node.parent] = left.at(-1).id;
  else delete conversation.chosen[node.parent];
}

export const listSiblings = (conversation, node) =>
  Object.values(conversation.nodes).filter((other) => other.parent === node.parent);

export function shownPath(conversation) {
  const nodes = [];
  let at = conversation.chosen[ROOT];
  while (at && conversation.nodes[at] && nodes.length < 10000) {
    nodes.push(conversation.nodes[at]);
    at = conversation.chosen[at];
  }
  return nodes;
}
