// Markdown to DOM nodes: paragraphs, headings, lists, quotes, tables, fenced and inline code, emphasis, links.
// The output of a model is untrusted, so no string ever becomes markup: every node is made by createElement and every
// text by createTextNode. Only http, https and mailto links become links; anything unknown stays text.

const element = (name, ...children) => {
  const node = document.createElement(name);
  node.append(...children);
  return node;
};

// The inline marks, tried in this order at each of their first characters.
const INLINE = [
  [/^(`+)([\s\S]*?[^`])\1(?!`)/, (match) => element("code", match[2].replace(/^ (.*) $/s, "$1"))],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*/, (match) => element("strong", renderInline(match[1]))],
  [/^\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, (match) => element("em", renderInline(match[1]))],
  [/^\[([^\]\n]{1,500})\]\(([^\s()<>]{1,2000})\)/, (match) => makeLink(match[1], match[2]) ?? document.createTextNode(match[0])],
];

function makeLink(text, address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const node = element("a", text);
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}

function renderInline(text) {
  const nodes = document.createDocumentFragment();
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const match = "`*[".includes(text[at]) ? matchInline(text.slice(at, at + 4000)) : null;
    if (match) {
      nodes.append(plain, match.node);
      plain = "";
      at += match.length;
    } else {
      plain += text[at++];
    }
  }
  nodes.append(plain);
  return nodes;
}

function matchInline(rest) {
  for (const [pattern, make] of INLINE) {
    const match = pattern.exec(rest);
    if (match) return { node: make(match), length: match[0].length };
  }
  return null;
}

function renderTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, renderInline(cell))));
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  return element("table", element("thead", row(lines[0], "th")), body);
}

// Kinds of blocks: the first line, whether a further line belongs to the block, and its DOM node.
const BLOCKS = [
  { startsWith: /^#{1,4} /, continues: () => false, make: ([line]) => element(`h${Math.min(4, 1 + line.indexOf(" "))}`, renderInline(line.replace(/^#+ /, ""))) },
  { startsWith: /^> ?/, continues: (line) => /^> ?/.test(line), make: (lines, depth) => element("blockquote", renderMarkdown(lines.map((line) => line.replace(/^> ?/, "")).join("\n"), depth + 1)) },
  { startsWith: /^[-*] /, continues: (line) => /^[-*] /.test(line), make: (lines) => element("ul", ...lines.map((line) => element("li", renderInline(line.slice(2))))) },
  { startsWith: /^\d{1,9}[.)] /, continues: (line) => /^\d{1,9}[.)] /.test(line), make: (lines) => renderOrderedList(lines) },
];

function renderOrderedList(lines) {
  const list = element("ol", ...lines.map((line) => element("li", renderInline(line.replace(/^\d+[.)] /, "")))));
  list.start = parseInt(lines[0], 10);
  return list;
}

export function renderMarkdown(text, depth = 0) {
  if (depth > 8) return element("p", text); // limits the depth of nested quotes
  const nodes = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = /^(```+|~~~+)\s*([\w+-]*)\s*$/.exec(line);
    const block = BLOCKS.find((kind) => kind.startsWith.test(line));
    let end = at + 1;
    if (fence) {
      while (end < lines.length && lines[end].trim() !== fence[1]) end++;
      nodes.append(element("pre", element("code", lines.slice(at + 1, end).join("\n"))));
      end++;
    } else if (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("|")) {
      while (end < lines.length && lines[end].includes("|")) end++;
      nodes.append(renderTable(lines.slice(at, end)));
    } else if (block) {
      while (end < lines.length && block.continues(lines[end])) end++;
      nodes.append(block.make(lines.slice(at, end), depth));
    } else if (line.trim()) {
      while (end < lines.length && lines[end].trim() && !BLOCKS.some((kind) => kind.startsWith.test(lines[end])) && !/^(```|~~~)/.test(lines[end])) end++;
      nodes.append(element("p", renderInline(lines.slice(at, end).join("\n"))));
    }
    at = end;
  }
  return nodes;
}
