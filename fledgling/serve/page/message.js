// One message as DOM nodes: prose as Markdown, calls of the tool folded, or token by token with probabilities.

import { markdown } from "./markdown.js";

const make = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.append(text);
  return node;
};

export function button(text, label, act) {
  const node = make("button", "", text);
  node.type = "button";
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", act);
  return node;
}

// What an answer says: prose, and for each call of the tool a folded box with what it was asked and what it said.
export function prose(parts) {
  const nodes = document.createDocumentFragment();
  for (let at = 0; at < parts.length; at++) {
    const { type, text } = parts[at];
    if (type === "text") nodes.append(markdown(text));
    else if (type === "python") {
      const said = parts[at + 1]?.type === "output" ? parts[++at].text : null;
      const box = make("details", "call");
      box.append(make("summary", "", `Calculated ${text}${said === null ? " …" : ""}`));
      const lines = make("pre");
      lines.append(make("code", "", said === null ? text : `${text}\n= ${said}`));
      box.append(lines);
      nodes.append(box);
    }
  }
  return nodes;
}

// Every token on a ground that is the darker the less likely it was; pointing at it, or focus, names alternatives.
export function byToken(tokens) {
  const nodes = document.createDocumentFragment();
  for (const { token, logprob, top_logprobs: others } of tokens) {
    const forced = logprob === 0 && !others.length;
    const span = make("span", forced ? "token forced" : "token", token);
    const share = Math.exp(logprob);
    span.style.setProperty("background-color", `rgba(var(--mark), ${(0.55 * (1 - share)).toFixed(3)})`);
    span.tabIndex = 0;
    const lines = forced ? ["written by the tool"] : [
      `${JSON.stringify(token)}  ${(100 * share).toFixed(1)} %`,
      ...others.map((other) => `${JSON.stringify(other.token)}  ${(100 * Math.exp(other.logprob)).toFixed(1)} %`),
    ];
    span.setAttribute("aria-label", lines.join(", "));
    span.setAttribute("role", "note");
    for (const event of ["pointerenter", "focus"]) span.addEventListener(event, () => showTip(span, lines.join("\n")));
    for (const event of ["pointerleave", "blur"]) span.addEventListener(event, hideTip);
    nodes.append(span);
  }
  return nodes;
}

function showTip(span, text) {
  hideTip();
  const tip = make("div", "", text);
  tip.id = "tip";
  const box = span.getBoundingClientRect();
  document.body.append(tip);
  tip.style.setProperty("left", `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`);
  tip.style.setProperty("top", `${box.bottom + 4 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`);
}

const hideTip = () => document.getElementById("tip")?.remove();
