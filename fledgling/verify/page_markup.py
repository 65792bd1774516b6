"""The markup that reports have, as a closed list: what else a page has may hide, move or replace what it says.

Start with `find_foreign_markup`. The list is of the templates, drawings and styles of all versions that wrote a
report.html. A template or style that changes adds to it and removes nothing, so that pages of earlier versions hold.
"""

from __future__ import annotations

import hashlib
import html
import re

STYLES = {  # SHA-256 of the style of each version, the newest last
    "548bed8e504f2f2f0abe7695becbc1314fb48815c5f62d4c29a6691aabaa49c5",
    "a4d938f504052b4a9d7c080a3bbd41a04182464045858845d5de5413f51f5d18",
    "3f1c64704696ed7ed89bf1170e2d95ce92d2b5a1c2fe7543d75ccfb70fc73dc2",
    "3ee5addc93c0a0ebb61125fc2785d04760ff88625b0e84fe55d5ba0b3c2d910e",
    "34e15d811b19243bdce0a9b2c811f99f974fa2b9f370325242fc74b14bbde5d8",
    "f65359e589259e25cf30bac326fc42bde179be3be68d29c3e5f7188a66a2e90d",
    "c3051e1e86352bbed800fd771f427a2d7be59a4695714478e57f34cccd2f9f47",
}
# Element -> the elements that it may be in. Nesting is whole: a browser moves what is in the wrong place of a table.
PARENTS = {
    "html": "", "head": "html", "body": "html", "meta": "head", "title": "head circle",
    "header": "body", "main": "body", "footer": "body", "section": "main", "h1": "header", "h2": "section",
    "h3": "section div", "p": "header section", "dl": "header", "dt": "div", "dd": "div", "div": "section div dl",
    "table": "div section", "thead": "table", "tbody": "table", "tr": "thead tbody", "th": "tr", "td": "tr",
    "code": "td", "span": "p td li", "details": "section", "summary": "details", "pre": "details",
    "ol": "details", "ul": "details section", "li": "ol ul", "figure": "div", "figcaption": "figure",
    "svg": "figure td", "text": "svg", "line": "svg", "polyline": "svg", "polygon": "svg", "circle": "svg",
    "rect": "svg",
}  # fmt: skip
NUMBER = r"\d{1,3}(?:\.\d+)?"
POINTS = rf"(?:{NUMBER},{NUMBER}(?: {NUMBER},{NUMBER})*)?"  # none of a band that no point has
CONTENTS = r"width=device-width, initial-scale=1|light dark|default-src 'none'; style-src 'unsafe-inline'"
# Element -> attribute -> its values, a pattern; None: it has no value.
ATTRIBUTES: dict[str, dict[str, str | None]] = {
    "html": {"lang": "en"},
    "meta": {
        "charset": "utf-8",
        "name": "viewport|color-scheme",
        "http-equiv": "Content-Security-Policy",
        "content": CONTENTS,
    },
    "footer": {"data-lines": ".*", "data-made": r"[\d.]*", "data-code": "[0-9a-f]*", "data-digest": "[0-9a-f]*"},
    "p": {"class": "kicker|lead|legend|note"},
    "dl": {"class": "tiles"},
    "dd": {"class": "small"},
    "div": {"class": "wide|columns|charts(?: |  ?two)?"},
    "table": {"class": "evals|plain"},
    "th": {"scope": "row"},
    "td": {"class": "quiet"},
    "span": {"class": r"key c[0-6](?: dashed)?|none|quiet|sai[d]|span|text|value|when"},
    "details": {"open": None},
    "ol": {"class": "answers"},
    "ul": {"class": "notices"},
    "svg": {
        "viewBox": r"0 0 (?:100 10|380 230)",
        "role": "img",
        "aria-label": ".*",
        "preserveAspectRatio": "none",
        "class": "bar",
        "aria-hidden": "true",
    },
    "text": {"x": NUMBER, "y": NUMBER, "class": "end|middle|middle label|start stage"},
    "line": {
        **dict.fromkeys(("x1", "y1", "x2", "y2"), NUMBER),
        "class": "grid|mark|axis|whisker|constant|line c[0-6]",
    },
    "polyline": {"points": POINTS, "class": "line c[0-6](?: faint)?(?: dashed)?"},
    "polygon": {"points": POINTS, "class": "band c[0-6]"},
    "circle": {"cx": NUMBER, "cy": NUMBER, "r": r"2\.6", "class": "dot c[0-6]"},
    "rect": {"width": NUMBER, "height": NUMBER, "y": NUMBER, "class": "trough|fill c[0-6]"},
}
LEAVES = {"line", "polyline", "polygon", "rect"}  # of drawings, which may end in "/>"; of others a browser ignores it
WITHOUT_TEXT = {"table", "thead", "tbody", "tr", "dl", "ol", "ul", "svg"}  # a browser moves their text, or hides it
BARS = "0 0 100 10"  # drawings in cells
MAX_FOUND = 5
SHOWN = 80  # characters of what is found
_TAG = re.compile(r'<(/?)([a-z][a-z0-9]*)((?:[ \n]+[a-zA-Z][\w-]*(?:="[^"<>]*")?)*)[ \n]*(/?)>')
_ATTRIBUTE = re.compile(r'([a-zA-Z][\w-]*)(?:="([^"<>]*)")?')
REPLACED = "\ufffd"  # what a report has for characters of a text that cannot be printed; early versions had these
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")  # characters that reverse the order of others


def find_foreign_markup(page: str, made: str) -> list[str]:
    """Returns what a page has that no report has, at most MAX_FOUND: rules of style, elements, attributes.

    made: the page that the record gives, whose style is known too.
    """
    page, styles = cut_elements(page, "style")
    known = cut_elements(made, "style")[1]
    found = [_describe_style(style, "".join(known)) for style in styles if not _is_known(style, known)]
    found += [f"{len(styles)} styles"] if len(styles) > 1 else []
    reversing = _DIRECTION.findall(html.unescape(page))
    if len(reversing) > made.count(REPLACED):
        found.append(f"the character U+{ord(reversing[0]):04X}")
    stack, position = list[str](), len("<!doctype html>") if page.lower().startswith("<!doctype html>") else 0
    box = ""
    for match in _TAG.finditer(page, position):
        text, element = page[position : match.start()], match[0]
        closing, name, attributes, end = match.groups()
        if "<" in text:
            found.append(text[text.index("<") :])
        elif text.strip() and stack and stack[-1] in WITHOUT_TEXT:
            found.append(f"{text.strip()[:20]} in <{stack[-1]}>")
        position = match.end()
        if closing:
            if attributes or end or not stack or stack.pop() != name:
                found.append(element)
        else:
            values = dict(_ATTRIBUTE.findall(attributes))
            box = values.get("viewBox", "") if name == "svg" else box
            if not _is_of_reports(name, attributes, stack[-1] if stack else "", box) or (end and name not in LEAVES):
                found.append(element)
            if name != "meta" and not end:
                stack.append(name)
        if len(found) >= MAX_FOUND:
            break
    else:
        rest = page[position:]
        found += [rest[rest.index("<") :]] if "<" in rest else [f"<{stack[-1]}> without an end"] if stack else []
    return [" ".join(text.split())[:SHOWN] for text in found[:MAX_FOUND]]


def _is_of_reports(name: str, attributes: str, parent: str, box: str) -> bool:
    """Returns whether reports have an element with these attributes there.

    box: the viewBox of the drawing that it is in; drawings overflow, so what is outside of it would cover other text.
    """
    if parent not in PARENTS.get(name, "-").split(" "):
        return False
    allowed, pairs = ATTRIBUTES.get(name, {}), _ATTRIBUTE.findall(attributes)
    for key, value in pairs:
        if key not in allowed:
            return False
        pattern = allowed[key]
        if value if pattern is None else not re.fullmatch(pattern, value, re.DOTALL):
            return False
    values = dict(pairs)
    if name == "svg":
        return len(values) == len(pairs) and (values.get("class") == "bar") == (values.get("viewBox") == BARS)
    return parent != "svg" or _is_inside(values, box)


def _is_inside(values: dict[str, str], box: str) -> bool:
    """Returns whether an element of a drawing is inside of its viewBox."""
    _, _, width, height = map(float, box.split(" ")) if box else (0.0, 0.0, 0.0, 0.0)
    points = [float(number) for number in re.findall(NUMBER, values.get("points", ""))]
    across = [float(values[key]) for key in ("x", "x1", "x2", "cx", "width") if key in values] + points[::2]
    down = [float(values[key]) for key in ("y1", "y2", "cy") if key in values] + points[1::2]
    down.append(float(values.get("y", 0)) + float(values.get("height", 0)))
    return max(across, default=0.0) <= width and max(down) <= height


def _is_known(style: str, known: list[str]) -> bool:
    """Returns whether an element `style`, without its end, is that of a version, or of the page that is made here."""
    text = style.removeprefix("<style>")
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return style in known or (style != text and digest in STYLES)


def _describe_style(style: str, known: str) -> str:
    """Returns the first rule of a style that the known one has not, or that the style is of no version."""
    rules = {" ".join(rule.split()) for rule in known.split("}")}
    others = (" ".join(rule.split()) for rule in style.split("}"))
    return next((f"{rule} }}" for rule in others if rule not in rules), "the style of no version")


def cut_elements(markup: str, name: str) -> tuple[str, list[str]]:
    """Returns the markup without the elements of a name, and these; in one pass, whatever the markup is."""
    kept, cut = [], []
    for part in markup.split(f"</{name}>"):
        before, start, element = part.partition(f"<{name}")
        kept.append(before)
        cut += [start + element] if start else []
    return " ".join(kept), cut
