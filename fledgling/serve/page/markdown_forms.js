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
const HEADING = /^#{2,6}(?=[\p{L}\p{N}*`"'(])/u;
const TAG = /<(br\s*\/?|\/?(?:sub|sup|kbd))>/iy;
const DELIMITER_ROW = /^[ \t|:-]*$/;
const DELIMITER = /^:?-+:?$/;
const QUOTE = /^[ \t>]*/; // what may precede a row of a table in quotes, and in lists
const MARKERS = /^[ \t>]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+[ \t>]*)*/;
const FORMULA = /\$\$[^$]+\$\$|\$[^$\s](?:[^$]*[^$\s])?\$/g;
const BRACKETS = [["\\(", "\\)"], ["\\[", "\\]"]]; // of formulas
const PIPE = "\uFDD0"; // in place of a pipe that separates no cells; no character, of the same length
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303F\uFF00-\uFFEF]/u;
const MAX_LINES = 200; // of a formula or comment
const MAX_TAGS = 1000; // of one message: those that are not closed would nest
const PARAGRAPH = { alt: ["paragraph", "reference", "blockquote", "list"] };

// Adds the rules to a parser; `renderFormula(source, displayMode, env)` returns the HTML of a formula.
export function addForms(parser, renderFormula) {
  const { block, inline, core, renderer: { rules }, utils: { escapeHtml } } = parser;
  block.ruler.at("math_block_dollar", formulaBlock, PARAGRAPH);
  block.ruler.at("math_block_bracket", environmentBlock, PARAGRAPH);
  inline.ruler.at("math_inline_bracket", formulaInline); // the plugin's takes quadratic time
  block.ruler.before("reference", "footnote", footnoteBlock, PARAGRAPH);
  block.ruler.before("heading", "tight_heading", tightHeading, PARAGRAPH);
  block.ruler.before("paragraph", "comment", commentBlock);
  core.ruler.before("block", "hide_pipes", hidePipes);
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

// Returns the line of a block's end, -1 where it has none: the first line from `start` on for which `isEnd(text, line)` is
// true, unless `isBroken(line)` is true before. A search with the same key in the same block resumes at the line that ended
// the last one, so that many beginnings without an end take linear time.
function findEndLine(state, key, start, end, isBroken, isEnd) {
  const place = `${key} ${state.blkIndent} ${state.level}`;
  state.searches ??= new Map();
  const known = state.searches.get(place);
  const isKnown = known && known.since <= start && start <= known.line;
  const last = Math.min(end, start + MAX_LINES);
  let line = isKnown ? known.line : start;
  let found = false;
  for (; line < last && !isOutside(state, line); line += 1) {
    found = isEnd(lineOf(state, line), line);
    if (found || isBroken(line)) break;
  }
  state.searches.set(place, { since: isKnown ? known.since : start, line });
  return found ? line : -1;
}

const linesOf = (state, start, end) => Array.from({ length: end - start }, (_, at) => lineOf(state, start + at));

// $$...$$ or \[...\] with nothing after it. One that begins and ends alone on its lines may have empty ones.
function formulaBlock(state, start, end, silent) {
  const first = lineOf(state, start);
  const [open, close] = FORMULAS.find((pair) => first.startsWith(pair[0])) ?? [];
  if (!open || isCode(state, start)) return false;
  const isAlone = first.trim() === open;
  const isBroken = (line) => state.isEmpty(line) && !isAlone;
  const isEnd = (text, line) => text.includes(close, line === start ? 2 : 0);
  const line = findEndLine(state, close + isAlone, start, end, isBroken, isEnd);
  if (line < 0) return false;
  const last = lineOf(state, line);
  const at = last.indexOf(close, line === start ? 2 : 0);
  if (last.slice(at + 2).trim()) return false;
  const content = [...linesOf(state, start, line), last.slice(0, at)].join("\n").slice(2).trim();
  return content !== "" && (silent || pushFormula(state, content, start, line + 1));
}

function environmentBlock(state, start, end, silent) {
  const name = ENVIRONMENT.exec(lineOf(state, start))?.[1];
  if (!name || isCode(state, start)) return false;
  const isEnd = (text) => text.trimEnd().endsWith(`\\end{${name}}`);
  const line = findEndLine(state, name, start, end, (at) => state.isEmpty(at), isEnd);
  return line >= 0 && (silent || pushFormula(state, linesOf(state, start, line + 1).join("\n"), start, line + 1));
}

// Returns where a text ends, -1 where it does not: from one beginning after another the end is searched once.
function findEnd(state, text, from) {
  state.ends ??= new Map();
  let known = state.ends.get(text);
  if (!(known?.from <= from && from <= known.end)) {
    const end = state.src.indexOf(text, from);
    known = { from, end: end < 0 ? Infinity : end };
    state.ends.set(text, known);
  }
  return known.end < state.posMax ? known.end : -1;
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
  const line = lineOf(state, start).trimEnd();
  const marks = HEADING.exec(line)?.[0];
  if (!marks || isCode(state, start)) return false;
  if (silent) return true;
  let last = line.length;
  while (line[last - 1] === "#") last -= 1;
  if (!/[ \t]/.test(line[last - 1])) last = line.length; // no closing marks
  state.line = start + 1;
  pushParagraph(state, `h${marks.length}`, line.slice(marks.length, last).trim(), [start, start + 1]);
  return true;
}

function commentBlock(state, start, end, silent) {
  if (silent || !lineOf(state, start).startsWith("<!--")) return false;
  const isEnd = (text, line) => text.includes("-->", line === start ? 4 : 0);
  const line = findEndLine(state, "-->", start, end, () => false, isEnd);
  if (line < 0) return false;
  const last = lineOf(state, line);
  if (last.slice(last.indexOf("-->", line === start ? 4 : 0) + 3).trim()) return false;
  state.line = line + 1;
  return true;
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

// A row with more cells than its table has pipes within code or formulas, which models do not escape. This is one pass over
// the text before its blocks are known: what is hidden outside of a table is restored too.
function hidePipes(state) {
  const lines = state.src.split("\n");
  let columns = 0; // of the table that the line is in
  for (const [at, line] of lines.entries()) {
    const [markers] = MARKERS.exec(line);
    const row = line.slice(markers.length);
    const below = countDelimiters(lines[at + 1] ?? "");
    if (!row.trim()) columns = 0;
    else if (below && countCells(fitRow(row, below)) === below) columns = below;
    if (columns) lines[at] = markers + fitRow(row, columns);
  }
  state.src = lines.join("\n");
}

// Returns a row with pipes of code, or of code and formulas, hidden where it then has as many cells as its table.
function fitRow(row, columns) {
  if (countCells(row) <= columns) return row;
  const inCode = hideInCode(row);
  if (countCells(inCode) === columns) return inCode;
  const hidden = BRACKETS.reduce(hideBetween, inCode.replace(FORMULA, hide));
  return countCells(hidden) === columns ? hidden : row;
}

// Code is between a run of backticks and the next run of the same length.
function hideInCode(row) {
  const runs = [...row.matchAll(/`+/g)];
  const following = new Map(); // by length: the number of the next run
  const closing = runs.map(() => -1);
  for (let at = runs.length - 1; at >= 0; at -= 1) {
    closing[at] = following.get(runs[at][0].length) ?? -1;
    following.set(runs[at][0].length, at);
  }
  const spans = [];
  for (let at = 0; at < runs.length; at += 1) {
    if (closing[at] < 0) continue;
    spans.push([runs[at].index, runs[closing[at]].index]);
    at = closing[at];
  }
  return hideSpans(row, spans);
}

function hideBetween(row, [open, close]) {
  const spans = [];
  for (let at = row.indexOf(open); at >= 0;) {
    const end = row.indexOf(close, at + 2);
    if (end < 0) break;
    spans.push([at, end]);
    at = row.indexOf(open, end + 2);
  }
  return hideSpans(row, spans);
}

function hideSpans(row, spans) {
  const parts = [];
  let written = 0;
  for (const [start, end] of spans) {
    parts.push(row.slice(written, start), hide(row.slice(start, end)));
    written = end;
  }
  return parts.join("") + row.slice(written);
}

const hide = (text) => text.replace(/(?<!\\)\|/g, PIPE);
const splitCells = (row) => row.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/);
const countCells = (row) => splitCells(row).length;

// Returns the number of columns of a row of delimiters; 0: it is none.
function countDelimiters(line) {
  const row = line.slice(QUOTE.exec(line)[0].length);
  if (!row.includes("|") || !DELIMITER_ROW.test(row)) return 0;
  const cells = splitCells(row);
  return cells.every((cell) => DELIMITER.test(cell.trim())) ? cells.length : 0;
}

function restorePipes(tokens) {
  for (const token of tokens) {
    for (const name of ["content", "info"]) token[name] = token[name].replaceAll(PIPE, "|");
  }
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
