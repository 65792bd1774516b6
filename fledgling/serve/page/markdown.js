// Markdown to DOM nodes: paragraphs, headings, lists, quotes, tables, fenced and inline code, emphasis, links.
// The one idea: what a model writes is hostile, so no string ever becomes markup: every node is made by createElement and
// every text by createTextNode. A link is a link only with http, https or mailto; anything not understood stays text.

const element = (name, ...children) => {
  const node = document.createElement(name);
  node.append(...children);
  return node;
};

// The inline marks, tried in this order at every place where one of their first characters stands.
const INLINE = [
  [/^(`+)([\s\S]*?[^`])\1(?!`)/, (found) => element("code", found[2].replace(/^ (.*) $/s, "$1"))],
  [/^\*\*(?=\S)([\s\S]*?\S)\*\*/, (found) => element("strong", inline(found[1]))],
  [/^\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, (found) => element("em", inline(found[1]))],
  [/^\[([^\]\n]{1,500})\]\(([^\s()<>]{1,2000})\)/, (found) => link(found[1], found[2]) ?? document.createTextNode(found[0])],
];

function link(text, address) {
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

function inline(text) {
  const nodes = document.createDocumentFragment();
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const found = "`*[".includes(text[at]) ? first(text.slice(at, at + 4000)) : null;
    if (found) {
      nodes.append(plain, found.node);
      plain = "";
      at += found.length;
    } else {
      plain += text[at++];
    }
  }
  nodes.append(plain);
  return nodes;
}

function first(rest) {
  for (const [pattern, make] of INLINE) {
    const found = pattern.exec(rest);
    if (found) return { node: make(found), length: found[0].length };
  }
  return null;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, inline(cell))));
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  return element("table", element("thead", row(lines[0], "th")), body);
}

// Kinds of blocks: a line that begins one, whether a further line belongs to it, and what it becomes.
const BLOCKS = [
  { begins: /^#{1,4} /, goesOn: () => false, make: ([line]) => element(`h${Math.min(4, 1 + line.indexOf(" "))}`, inline(line.replace(/^#+ /, ""))) },
  { begins: /^> ?/, goesOn: (line) => /^> ?/.test(line), make: (lines, depth) => element("blockquote", markdown(lines.map((line) => line.replace(/^> ?/, "")).join("\n"), depth + 1)) },
  { begins: /^[-*] /, goesOn: (line) => /^[-*] /.test(line), make: (lines) => element("ul", ...lines.map((line) => element("li", inline(line.slice(2))))) },
  { begins: /^\d{1,9}[.)] /, goesOn: (line) => /^\d{1,9}[.)] /.test(line), make: (lines) => ordered(lines) },
];

function ordered(lines) {
  const list = element("ol", ...lines.map((line) => element("li", inline(line.replace(/^\d+[.)] /, "")))));
  list.start = parseInt(lines[0], 10);
  return list;
}

export function markdown(text, depth = 0) {
  if (depth > 8) return element("p", text); // quotes in quotes in quotes ... end somewhere
  const nodes = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = /^(```+|~~~+)\s*([\w+-]*)\s*$/.exec(line);
    const block = BLOCKS.find((kind) => kind.begins.test(line));
    let end = at + 1;
    if (fence) {
      while (end < lines.length && lines[end].trim() !== fence[1]) end++;
      nodes.append(element("pre", element("code", lines.slice(at + 1, end).join("\n"))));
      end++;
    } else if (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("|")) {
      while (end < lines.length && lines[end].includes("|")) end++;
      nodes.append(table(lines.slice(at, end)));
    } else if (block) {
      while (end < lines.length && block.goesOn(lines[end])) end++;
      nodes.append(block.make(lines.slice(at, end), depth));
    } else if (line.trim()) {
      while (end < lines.length && lines[end].trim() && !BLOCKS.some((kind) => kind.begins.test(lines[end])) && !/^(```|~~~)/.test(lines[end])) end++;
      nodes.append(element("p", inline(lines.slice(at, end).join("\n"))));
    }
    at = end;
  }
  return nodes;
}
