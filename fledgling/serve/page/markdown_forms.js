// Forms of Markdown as models write them that the parser lacks: display formulas within a line and environments of
// LaTeX, footnotes, task lists, headings without a space, code with pipes in tables, line breaks and raised text in
// HTML, comments, and emphasis next to Chinese, Japanese and Korean. Rules of markdown-it: each makes tokens, and all
// text of a token is escaped by its renderer.

const FORMULAS = [["$$", "$$"], ["\\[", "\\]"]]; // of display
const INLINE_FORMULAS = [...FORMULAS, ["\\(", "\\)"]];
const ENVIRONMENT = /^\\begin\{((?:align|alignat|equation|gather|multline|eqnarray|split|cases|array|[pbvBV]?matrix)(?:ed)?\*?)\}/;
const FOOTNOTE = /^\[\^([^\]\s]{1,40})\]:[ \t]*/;
const REFERENCE = /\[\^([^\]\s]{1,40})\]/y;
const TASK = /^\[([ xX])\](?=\s)/;
const HEADING = /^(#{2,6})(?=[\p{L}\p{N}*`"'(])(.*?)(?:[ \t]+#+)?[ \t]*$/u;
const TAG = /<(br\s*\/?|\/?(?:sub|sup|kbd))>/iy;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const CODE = /(`+)(?!`).*?[^`]\1(?!`)/g;
const FORMULA = /\$\$[^$]+\$\$|\$[^$\s](?:[^$]*[^$\s])?\$|\\\(.*?\\\)|\\\[.*?\\\]/g;
const PIPE = "\uFDD0"; // in place of a pipe that separates no cells; no character, of the same length
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303F\uFF00-\uFFEF]/u;
const MAX_LINES = 200; // of a formula or comment: an end that is missing is searched at every beginning
const MAX_TAGS = 1000; // of one message: those that are not closed would nest
const MAX_ROW_CHARS = 2000;
const PARAGRAPH = { alt: ["paragraph", "reference", "blockquote", "list"] };

// Adds the rules to a parser; `renderFormula(source, displayMode, env)` returns the HTML of a formula.
export function addForms(parser, renderFormula) {
  const { block, inline, core, renderer: { rules }, utils: { escapeHtml } } = parser;
  block.ruler.at("math_block_dollar", formulaBlock, PARAGRAPH);
  block.ruler.at("math_block_bracket", environmentBlock, PARAGRAPH);
  inline.ruler.at("math_inline_bracket", formulaInline); // the plugin's takes quadratic time
  block.ruler.before("table", "table_pipes", hidePipes, { alt: ["paragraph", "reference"] });
  block.ruler.before("reference", "footnote", footnoteBlock, PARAGRAPH);
  block.ruler.before("heading", "tight_heading", tightHeading, PARAGRAPH);
  block.ruler.before("paragraph", "comment", commentBlock);
  core.ruler.after("block", "restore_pipes", (state) => restorePipes(state.tokens));
  core.ruler.after("restore_pipes", "tasks", markTasks);
  inline.ruler.before("link", "footnote", footnoteInline);
  inline.ruler.before("html_inline", "tag", tagInline);
  joinCjk(inline.State);
  rules.formula = (tokens, at, options, env) => renderFormula(tokens[at].content, tokens[at].markup !== "\\(", env, "span");
  rules.footnote = (tokens, at) => `<sup>${escapeHtml(tokens[at].content)}</sup>`;
  rules.tag = (tokens, at) => tokens[at].content;
}

const lineOf = (state, line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]);
const isCode = (state, line) => state.sCount[line] - state.blkIndent >= 4;
const isOutside = (state, line) => state.sCount[line] < state.blkIndent && !state.isEmpty(line);

function pushFormula(state, content, start, end) {
  const token = state.push("math_block", "math", 0);
  Object.assign(token, { block: true, content, map: [start, end] });
  state.line = end;
  return true;
}

// $$...$$ or \[...\] with nothing after it. One that begins and ends alone on its lines may have empty ones.
function formulaBlock(state, start, end, silent) {
  const first = lineOf(state, start);
  const pair = FORMULAS.find(([open]) => first.startsWith(open));
  if (!pair || isCode(state, start)) return false;
  const [, close] = pair;
  const content = [];
  for (let line = start; line < Math.min(end, start + MAX_LINES) && !isOutside(state, line); line += 1) {
    const text = line === start ? first.slice(2) : lineOf(state, line);
    const at = text.indexOf(close);
    if (at >= 0) {
      if (text.slice(at + 2).trim() || !(content.join("") + text.slice(0, at)).trim()) return false;
      return silent || pushFormula(state, [...content, text.slice(0, at)].join("\n").trim(), start, line + 1);
    }
    if (state.isEmpty(line) && first.trim() !== pair[0]) return false;
    content.push(text);
  }
  return false;
}

function environmentBlock(state, start, end, silent) {
  const name = ENVIRONMENT.exec(lineOf(state, start))?.[1];
  if (!name || isCode(state, start)) return false;
  const content = [];
  for (let line = start; line < Math.min(end, start + MAX_LINES) && !state.isEmpty(line) && !isOutside(state, line); line += 1) {
    content.push(lineOf(state, line));
    if (content.at(-1).trimEnd().endsWith(`\\end{${name}}`)) return silent || pushFormula(state, content.join("\n"), start, line + 1);
  }
  return false;
}

// Returns where a text ends, -1 where it does not: of a text that has no further end, none is searched again.
function findEnd(state, text, from) {
  state.missing ??= new Set();
  if (state.missing.has(text)) return -1;
  const end = state.src.indexOf(text, from);
  if (end < 0) state.missing.add(text);
  return end < state.posMax ? end : -1;
}

function formulaInline(state, silent) {
  const pair = INLINE_FORMULAS.find(([open]) => state.src.startsWith(open, state.pos));
  const end = pair ? findEnd(state, pair[1], state.pos + 2) : -1;
  const content = state.src.slice(state.pos + 2, end).trim();
  if (end < 0 || !content) return false;
  if (!silent) Object.assign(state.push("formula", "math", 0), { content, markup: pair[0] });
  state.pos = end + 2;
  return true;
}

// [^name]: text is shown where it is written; a reference to it is raised, and any other stays text.
function footnoteBlock(state, start, end, silent) {
  const match = FOOTNOTE.exec(lineOf(state, start));
  if (!match || isCode(state, start)) return false;
  if (silent) return true;
  (state.env.footnotes ??= new Set()).add(match[1]);
  const content = [lineOf(state, start).slice(match[0].length)];
  let line = start + 1;
  while (line < end && !state.isEmpty(line) && !isOutside(state, line) && !FOOTNOTE.test(lineOf(state, line))) {
    content.push(lineOf(state, line));
    line += 1;
  }
  state.line = line;
  pushParagraph(state, "p", `[^${match[1]}] ${content.join("\n")}`, [start, line]).attrSet("class", "footnote");
  return true;
}

function pushParagraph(state, tag, content, map) {
  const kind = tag === "p" ? "paragraph" : "heading";
  const open = state.push(`${kind}_open`, tag, 1);
  open.map = map;
  Object.assign(state.push("inline", "", 0), { content, map, children: [] });
  state.push(`${kind}_close`, tag, -1);
  return open;
}

function footnoteInline(state, silent) {
  REFERENCE.lastIndex = state.pos;
  const match = REFERENCE.exec(state.src);
  if (!match || !state.env.footnotes?.has(match[1])) return false;
  if (!silent) state.push("footnote", "sup", 0).content = match[1];
  state.pos += match[0].length;
  return true;
}

// ##Heading: of two levels and more, since #word is a tag, #include a directive and #1 a number.
function tightHeading(state, start, end, silent) {
  const match = HEADING.exec(lineOf(state, start));
  if (!match || isCode(state, start)) return false;
  if (silent) return true;
  state.line = start + 1;
  pushParagraph(state, `h${match[1].length}`, match[2].trim(), [start, start + 1]);
  return true;
}

function commentBlock(state, start, end, silent) {
  if (silent || !lineOf(state, start).startsWith("<!--")) return false;
  for (let line = start; line < Math.min(end, start + MAX_LINES) && !isOutside(state, line); line += 1) {
    const at = lineOf(state, line).indexOf("-->", line === start ? 4 : 0);
    if (at < 0) continue;
    if (lineOf(state, line).slice(at + 3).trim()) return false;
    state.line = line + 1;
    return true;
  }
  return false;
}

function tagInline(state, silent) {
  if (state.src.startsWith("<!--", state.pos)) { // a comment shows nothing
    const end = findEnd(state, "-->", state.pos + 4);
    if (end < 0) return false;
    state.pos = end + 3;
    return true;
  }
  TAG.lastIndex = state.pos;
  const match = TAG.exec(state.src);
  state.env.tags = (state.env.tags ?? 0) + (match ? 1 : 0);
  if (!match || state.env.tags > MAX_TAGS) return false;
  if (!silent) state.push("tag", "", 0).content = match[1].toLowerCase().startsWith("br") ? "<br>" : match[0].toLowerCase();
  state.pos += match[0].length;
  return true;
}

// A row with more cells than its table has pipes within code or formulas, which models do not escape.
function hidePipes(state, start, end) {
  if (start + 1 >= end || !DELIMITERS.test(lineOf(state, start + 1)) || !lineOf(state, start + 1).includes("|")) return false;
  const columns = countCells(lineOf(state, start + 1));
  const parts = [];
  let written = 0;
  for (let line = start; line < end && !state.isEmpty(line); line += 1) {
    const row = lineOf(state, line);
    if (countCells(row) <= columns || row.length > MAX_ROW_CHARS) continue;
    const inCode = row.replace(CODE, hide);
    const hidden = [inCode, inCode.replace(FORMULA, hide)].find((one) => countCells(one) === columns);
    if (!hidden) continue;
    parts.push(state.src.slice(written, state.bMarks[line] + state.tShift[line]), hidden);
    written = state.eMarks[line];
  }
  if (parts.length) state.src = parts.join("") + state.src.slice(written);
  return false;
}

const hide = (text) => text.replace(/(?<!\\)\|/g, PIPE);
const countCells = (row) => row.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).length;

function restorePipes(tokens) {
  for (const token of tokens) if (token.content.includes(PIPE)) token.content = token.content.replaceAll(PIPE, "|");
}

function markTasks({ tokens }) {
  for (let at = 2; at < tokens.length; at += 1) {
    const item = tokens[at - 2];
    if (tokens[at].type !== "inline" || item.type !== "list_item_open" || !TASK.test(tokens[at].content)) continue;
    tokens[at].content = tokens[at].content.replace(TASK, (_, mark) => (mark === " " ? "☐" : "☑"));
    item.attrJoin("class", "task");
  }
}

// Their texts have no spaces, so that a mark next to a bracket or a full stop neither opens nor closes by the rules.
function joinCjk(State) {
  const scan = State.prototype.scanDelims;
  State.prototype.scanDelims = function scanDelims(start, canSplitWord) {
    const found = scan.call(this, start, canSplitWord);
    if (this.src[start] === "_") return found;
    const before = this.src[start - 1] ?? " ";
    const after = this.src[start + found.length] ?? " ";
    if (!CJK.test(before) && !CJK.test(after)) return found;
    return { ...found, can_open: !/\s/.test(after), can_close: !/\s/.test(before) };
  };
}
