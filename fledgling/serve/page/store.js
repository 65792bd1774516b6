// Conversations in the browser: each is a tree of messages, and a path through it is what is shown.
// The one idea: editing or asking again never overwrites: the new message becomes a sibling of the old one.
//
//   conversation = {id, title, nodes: {id: {id, parent, role, text, parts, tokens, reason}}, chosen: {parent: child}}

const PLACE = "fledgling.conversations";
const MOST = 200; // conversations kept
const ROOT = "root";

const fresh = () => crypto.randomUUID?.() ?? String(Math.random()).slice(2);

function sound(conversation) {
  return conversation && typeof conversation.id === "string" && typeof conversation.title === "string" &&
    conversation.nodes && typeof conversation.nodes === "object" && conversation.chosen && typeof conversation.chosen === "object";
}

export function load() {
  try {
    const found = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    return Array.isArray(found) ? found.filter(sound) : [];
  } catch {
    return [];
  }
}

// False where the browser has no room: the page then says so, and goes on without.
export function save(conversations) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(conversations.slice(0, MOST)));
    return true;
  } catch {
    return false;
  }
}

export const begin = () => ({ id: fresh(), title: "New conversation", nodes: {}, chosen: {} });

export function add(conversation, parent, role, text) {
  const node = { id: fresh(), parent: parent ?? ROOT, role, text, parts: [], tokens: [], reason: null };
  conversation.nodes[node.id] = node;
  conversation.chosen[node.parent] = node.id;
  if (role === "user" && node.parent === ROOT) conversation.title = text.slice(0, 60);
  return node;
}

export function remove(conversation, node) {
  delete conversation.nodes[node.id];
  const left = siblings(conversation, node);
  if (left.length) conversation.chosen[node.parent] = left.at(-1).id;
  else delete conversation.chosen[node.parent];
}

export const siblings = (conversation, node) =>
  Object.values(conversation.nodes).filter((other) => other.parent === node.parent);

export function path(conversation) {
  const found = [];
  let at = conversation.chosen[ROOT];
  while (at && conversation.nodes[at] && found.length < 10000) {
    found.push(conversation.nodes[at]);
    at = conversation.chosen[at];
  }
  return found;
}
