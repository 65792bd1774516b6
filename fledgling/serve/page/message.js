// One message as DOM nodes: prose as Markdown and folded tool calls, or single tokens with their probabilities.

import { renderMarkdown } from "./markdown.js";

const MAX_ERROR = 80; // characters of a call's error, in the line that is always shown

export const makeElement = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.append(text);
  return node;
};

export function makeButton(text, label, onClick) {
  const node = makeElement("button", "", text);
  node.type = "button";
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", onClick);
  return node;
}

// The parts of an answer: prose, and for each tool call a folded box with its expression and its output. A thought is in
// such a box too, open as long as nothing follows it.
export function renderParts(parts, isRunning) {
  const nodes = document.createDocumentFragment();
  for (let at = 0; at < parts.length; at++) {
    const { type, text } = parts[at];
    if (type === "text") nodes.append(renderMarkdown(text));
    else if (type === "thinking") {
      const box = makeElement("details", "call thought");
      box.open = at === parts.length - 1;
      box.append(makeElement("summary", "", isRunning && box.open ? "Thinking …" : "Thought"), makeElement("p", "", text));
      nodes.append(box);
    } else if (type === "python") {
      const output = parts[at + 1]?.type === "output" ? parts[++at].text : null;
      const box = makeElement("details", "call");
      const state = output === null ? " …" : output.startsWith("error: ") ? `, ${output.slice(0, MAX_ERROR)}` : "";
      const name = /^\{"name": "((?:[^"\\]|\\.)*)"/.exec(text)?.[1];
      box.append(makeElement("summary", "", `${name ? `Called ${name}` : `Calculated ${text}`}${state}`));
      const lines = makeElement("pre");
      lines.tabIndex = 0;
      lines.append(makeElement("code", "", output === null ? text : `${text}\n= ${output}`));
      box.append(lines);
      nodes.append(box);
    }
  }
  return nodes;
}

// Buttons that copy the blocks of code of a finished answer.
export function addCopyButtons(body, copied) {
  for (const block of body.querySelectorAll("pre:not(details pre)")) {
    const text = block.textContent;
    const button = makeButton("Copy", "Copy the code", () => navigator.clipboard?.writeText(text).then(copied));
    button.className = "copy";
    const box = makeElement("div", "code");
    block.replaceWith(box);
    box.append(block, button);
  }
}

// Every token on a background that is darker the less likely the token was; hover or focus shows the alternatives.
export function renderTokens(tokens) {
  const nodes = document.createDocumentFragment();
  nodes.append(tokenLegend(tokens));
  for (const { token, logprob, top_logprobs: others } of tokens) {
    const forced = isForced({ logprob, top_logprobs: others });
    const span = makeElement("span", forced ? "token forced" : "token", token);
    const share = Math.exp(logprob);
    span.style.setProperty("background-color", `rgba(var(--mark), ${(0.55 * (1 - share)).toFixed(3)})`);
    span.tabIndex = 0;
    const lines = forced ? ["inserted by the tool"] : [
      `${JSON.stringify(token)}  ${(100 * share).toFixed(1)} %`,
      ...others.filter((other) => other.token !== token || Math.abs(other.logprob - logprob) > 1e-3).map((other) => `${JSON.stringify(other.token)}  ${(100 * Math.exp(other.logprob)).toFixed(1)} %`),
    ];
    span.setAttribute("aria-label", lines.join(", "));
    span.setAttribute("role", "note");
    for (const event of ["pointerenter", "focus"]) span.addEventListener(event, () => showTip(span, lines.join("\n")));
    for (const event of ["pointerleave", "blur"]) span.addEventListener(event, hideTip);
    nodes.append(span);
  }
  return nodes;
}

const isForced = ({ logprob, top_logprobs: others }) => logprob === 0 && !others.length;

// What the colors mean, and the answer's mean information: -log2 of the probability, in bits a token.
function tokenLegend(tokens) {
  const sampled = tokens.filter((token) => !isForced(token));
  const bits = sampled.reduce((sum, { logprob }) => sum - logprob / Math.LN2, 0) / Math.max(1, sampled.length);
  const legend = makeElement("p", "legend", "likely ");
  for (const share of [1, 0.75, 0.5, 0.25, 0]) {
    const step = makeElement("span", "step", "  ");
    step.style.setProperty("background-color", `rgba(var(--mark), ${0.55 * (1 - share)})`);
    legend.append(step);
  }
  legend.append(` unlikely; ${sampled.length} tokens, ${bits.toFixed(2)} bits a token`);
  return legend;
}

function showTip(span, text) {
  hideTip();
  const tip = makeElement("div", "", text);
  tip.id = "tip";
  const box = span.getBoundingClientRect();
  document.body.append(tip);
  tip.style.setProperty("left", `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`);
  tip.style.setProperty("top", `${box.bottom + 4 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`);
}

const hideTip = () => document.getElementById("tip")?.remove();
