// Markdown to DOM nodes. markdown-it parses, temml sets formulas as MathML, highlight.js colors code, and DOMPurify
// makes the nodes; the page's policy (trusted types) lets nothing else make nodes from text.
// The output of a model is untrusted: HTML in it stays text (but <br>, <sub>, <sup>, <kbd>), images are shown as links and never loaded, only http,
// https and mailto become links, and what is too long is shown as it is.

import { markdownIt, tex, DOMPurify, temml, highlight } from "./vendor/markdown.bundle.js";
import { addForms } from "./markdown_forms.js";

const MAX_CHARS = 100_000; // of one message
const MAX_FORMULA_CHARS = 2_000;
const MAX_FORMULAS = 300; // of one message
const MAX_CODE_CHARS = 20_000; // of one message that are highlighted
const LONG_CODE = /[^\n]{301}|\s{301}/; // a line or a gap: the rules of some languages take quadratic time for one
const LINK = /^(?:https?:\/\/|mailto:)/i;

const TAGS = (
  "a p br hr strong em s sub sup kbd code pre ul ol li blockquote h2 h3 h4 h5 h6 table thead tbody tr th td div span " +
  "math mrow mi mn mo mtext ms mspace mfrac msqrt mroot mstyle mpadded mphantom merror msub msup msubsup munder mover " +
  "munderover mmultiscripts mprescripts none mtable mtr mtd"
).split(" ");
const ATTRIBUTES = (
  "href class start tabindex xmlns display mathvariant stretchy fence separator form lspace rspace largeop symmetric " +
  "movablelimits minsize maxsize accent accentunder linethickness displaystyle scriptlevel width height depth voffset " +
  "columnalign columnspacing rowspacing columnlines rowlines rowspan columnspan"
).split(" ");
const SANITIZE = {
  ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: LINK, ADD_URI_SAFE_ATTR: ATTRIBUTES.filter((name) => name !== "href"), RETURN_DOM_FRAGMENT: true,
};

const parser = markdownIt({ html: false, linkify: true, maxNesting: 30, highlight: highlightCode });
parser.validateLink = (address) => LINK.test(address.trim());
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false }); // `setup.py` is a file and not a site
parser.use(tex, { delimiters: "all", render: renderFormula });
addForms(parser, renderFormula);

const rules = parser.renderer.rules;
rules.image = (tokens, at) => { // with the address as a link, never loaded
  const { content, attrs } = tokens[at];
  const address = attrs.find(([name]) => name === "src")[1];
  return `<a href="${parser.utils.escapeHtml(address)}">image: ${parser.utils.escapeHtml(content || address)}</a>`;
};
for (const name of ["heading_open", "heading_close"]) rules[name] = (tokens, at, options, env, self) => { // h1 is the page's
  tokens[at].tag = `h${Math.min(6, Number(tokens[at].tag[1]) + (tokens[at].lowered ? 0 : 1))}`;
  tokens[at].lowered = true;
  return self.renderToken(tokens, at, options);
};
for (const name of ["th_open", "td_open"]) rules[name] = (tokens, at, options, env, self) => { // the policy forbids styles
  const align = /^text-align:(left|center|right)$/.exec(tokens[at].attrGet("style") ?? "");
  tokens[at].attrs = align ? [["class", `align-${align[1]}`]] : null;
  return self.renderToken(tokens, at, options);
};
rules.table_open = () => '<div class="scroll" tabindex="0"><table>';
rules.table_close = () => "</table></div>";

let highlightable = 0; // characters of the message that is parsed

function highlightCode(code, name) {
  const language = /^\{?\.?([\w+#-]+)/.exec(name)?.[1] ?? ""; // also {.python .numberLines}
  if (code.length > highlightable || LONG_CODE.test(code) || !highlight.getLanguage(language)) return "";
  highlightable -= code.length;
  return highlight.highlight(code, { language, ignoreIllegals: true }).value;
}

function renderFormula(source, displayMode, env, tag = "div") { // a paragraph holds no div
  env.formulas = (env.formulas ?? 0) + 1;
  const plain = `<code>${parser.utils.escapeHtml(source)}</code>`;
  if (source.length > MAX_FORMULA_CHARS || env.formulas > MAX_FORMULAS) return plain;
  try {
    const formula = temml.renderToString(source, {
      displayMode, throwOnError: true, trust: false, maxSize: [20, 20], maxExpand: 200,
    }).replace(/ style="[^"]*"/g, ""); // the policy forbids styles in markup
    return displayMode ? `<${tag} class="scroll formula" tabindex="0">${formula}</${tag}>` : formula;
  } catch {
    return plain; // half a formula while the answer is streamed, or one that is not TeX
  }
}

export function renderMarkdown(text) {
  if (text.length > MAX_CHARS) return makePlain(text);
  highlightable = MAX_CODE_CHARS;
  let nodes;
  try {
    nodes = DOMPurify.sanitize(parser.render(text, {}), SANITIZE);
  } catch {
    return makePlain(text);
  }
  for (const link of nodes.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of nodes.querySelectorAll("pre")) block.tabIndex = 0; // it may scroll
  return nodes;
}

function makePlain(text) {
  const block = document.createElement("pre");
  block.append(text);
  block.tabIndex = 0;
  return block;
}
