// Tools of the MCP servers that this server was started with: offered to the model, asked for before each call.

import { callTool, listTools } from "./api.js";

const $ = (id) => document.getElementById(id);
const HIDDEN = /(?![\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu; // cli/escape.py escapes the same
const DENIED = "error: the user denied the call";

let tools = [];
let lastConsent = Promise.resolve(); // one dialog at a time
const allowed = new Set(); // names that are called without asking

export async function readTools(key) {
  try {
    tools = await listTools(key);
  } catch {
    tools = []; // a server without tools
  }
  for (const tool of tools) if (tool.allowed) allowed.add(tool.function.name);
  $("tools").parentElement.hidden = !tools.length;
}

export const offeredTools = () => tools.map(({ type, function: described }) => ({ type, function: described }));

// Returns the text of a call's result, or of why there is none. Throws AbortError when the answer is stopped.
export async function callAllowedTool({ tool, args }, key, signal) {
  let values;
  try {
    values = JSON.parse(args);
  } catch {
    return "error: the arguments are no JSON";
  }
  if (!allowed.has(tool)) {
    const turn = lastConsent.then(() => requestConsent(tool, values, signal));
    lastConsent = turn.catch(() => {});
    if (!await turn) return DENIED;
  }
  return callTool(tool, values, key, signal);
}

// Control characters and those that reorder text as \u{202e}: what is shown is what is sent.
const escapeHidden = (text) => text.replace(HIDDEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);

function requestConsent(name, values, signal) {
  const dialog = $("ask");
  $("ask-name").textContent = escapeHidden(name);
  $("ask-arguments").textContent = escapeHidden(JSON.stringify(values, null, 2)); // all of them: the box scrolls
  $("ask-arguments").scrollTop = 0;
  return new Promise((resolve, reject) => {
    const listeners = new AbortController();
    const end = (settle, value) => {
      listeners.abort();
      dialog.close();
      settle(value);
    };
    const on = (target, event, act) => target.addEventListener(event, act, { signal: listeners.signal });
    on(signal, "abort", () => end(reject, signal.reason));
    on(dialog, "cancel", () => end(resolve, false));
    on($("ask-deny"), "click", () => end(resolve, false));
    on($("ask-once"), "click", () => end(resolve, true));
    on($("ask-always"), "click", () => { allowed.add(name); end(resolve, true); });
    if (signal.aborted) return end(reject, signal.reason);
    dialog.showModal();
  });
}
