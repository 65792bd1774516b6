"""Texts that become script in a page that builds markup from them, and how a test stores and finds them."""

from __future__ import annotations

RUN = "window.hit = (window.hit || 0) + 1"
# Texts that become script in a page that builds markup from them; each would set `hit`.
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"<script type=module>{RUN}</script>",
    f"<img src=x onerror='{RUN}'>",
    f"<img src=x onerror={RUN.replace(' ', '/**/')}>",
    f"<svg onload='{RUN}'>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin='{RUN}' attributeName=x dur=1s>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src='javascript:parent.{RUN}'></iframe>",
    f"<body onload='{RUN}'>",
    f"<details open ontoggle='{RUN}'>x</details>",
    f"<input autofocus onfocus='{RUN}'>",
    f"<video><source onerror='{RUN}'></video>",
    f"<audio src=x onerror='{RUN}'></audio>",
    f"<object data='javascript:{RUN}'></object>",
    f"<embed src='javascript:{RUN}'>",
    f"<math><mi xlink:href='javascript:{RUN}'>x</mi></math>",
    f"<marquee onstart='{RUN}'>x</marquee>",
    f"<style>@import 'javascript:{RUN}';</style>",
    f"<link rel=stylesheet href='javascript:{RUN}'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    "<base href='https://evil.example/'>",
    f"<form action='javascript:{RUN}'><button autofocus>x</button></form>",
    f"<template><script>{RUN}</script></template>",
    f"</code></pre><script>{RUN}</script>",
    f"```html\n</code></pre><img src=x onerror='{RUN}'>\n```",
    f"`<img src=x onerror='{RUN}'>`",
    f"**<img src=x onerror='{RUN}'>**",
    f"# <img src=x onerror='{RUN}'>",
    f"> <img src=x onerror='{RUN}'>",
    f"- <img src=x onerror='{RUN}'>",
    f"1. <img src=x onerror='{RUN}'>",
    f"a | b\n-|-\n<img src=x onerror='{RUN}'> | y",
    f"[x](javascript:{RUN.replace(' ', '')})",
    "[x](JaVaScRiPt:window.hit=1)",
    "[x](java\tscript:window.hit=1)",
    "[x](data:text/html,<script>parent.hit=1</script>)",
    "[x](vbscript:window.hit=1)",
    "[x](//evil.example/x)",
    f'[x](https://ok.example/"onmouseover="{RUN.replace(" ", "")})',
    f"![x](x onerror={RUN.replace(' ', '')})",
    "<a href='javascript:window.hit=1'>x</a>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<ScRiPt >{RUN}</sCrIpT >",
    f"<script\x00>{RUN}</script>",
    f"<script/x>{RUN}</script>",
    f"<!--><script>{RUN}</script>-->",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN.replace(' ', '')}>'>",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"${{{RUN}}}",
    f"';{RUN};'",
    f'";{RUN};"',
    f"</textarea><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"<x contenteditable onblur='{RUN}'>x</x>",
    f"<div style='background:url(javascript:{RUN})'>x</div>",
    f"\u202e<script>{RUN}</script>",
    "__proto__",
    # Markdown, mathematics and fences as carriers
    f"$\\text{{<img src=x onerror='{RUN}'>}}$",
    "$\\href{javascript:window.hit=1}{x}$",
    "$\\url{javascript:window.hit=1}$",
    "$\\includegraphics{https://evil.example/x.png}$",
    '$$\\class{x" onload=window.hit=1 "}{y}$$',
    "$\\style{background:url(https://evil.example/x)}{y}$",
    "$\\cssId{title}{y}$",
    f"\\(\\mathrm{{<script>{RUN}</script>}}\\)",
    "<javascript:window.hit=1>",
    "[x]: javascript:window.hit=1\n\n[x]",
    "[x](&#106;avascript:window.hit=1)",
    "[x](javascript&colon;window.hit=1)",
    "[x](\x01javascript:window.hit=1)",
    "[x](file:///etc/passwd)",
    "![x](https://evil.example/track.png)",
    "[![x](https://evil.example/track.png)](https://evil.example)",
    "![x](data:image/svg+xml;base64,PHN2Zy8+)",
    "[x](https://ok.example 'a\" onmouseover=\"window.hit=1')",
    '```"><img src=x onerror=window.hit=1>\nx\n```',
    f"```html\n<script>{RUN}</script>\n```",
    "~~~js onload=window.hit=1\nx\n~~~",
    "a | b\n:-:|-\n<td onclick=window.hit=1> | y",
    # forms of the page's own
    f"$$a$$ <!-- --> <img src=x onerror='{RUN}'> $$\\text{{<script>{RUN}</script>}}$$",
    f"<br onclick='{RUN}'><sub onclick='{RUN}'>x</sub><kbd/onclick={RUN.replace(' ', '')}>",
    f"a[^<img/src=x/onerror=hit=1>]\n\n[^<img/src=x/onerror=hit=1>]: <img src=x onerror='{RUN}'>",
    f"- [x] <img src=x onerror='{RUN}'>",
    f"##<img src=x onerror='{RUN}'>",
    f"a|b\n-|-\n`<img src=x|onerror='{RUN}'>`|y",
    f"<!-- a\n--><script>{RUN}</script>",
    "```{.python onload=window.hit=1}\nx\n```",
]


ELEMENTS = "script, img, svg, iframe, object, embed, style, link, meta, base, form, input, video, audio"
STORE_PAYLOADS = """([payloads, store]) => {  // as text of user, model, tool, title and error
    const nodes = {}, chosen = {};
    let parent = "root";
    const add = (role, text, parts, failed) => {
        const id = `${Object.keys(nodes).length}`;
        nodes[id] = { id, parent, role, text, parts, tokens: [], reason: null, failed };
        chosen[parent] = parent = id;
    };
    for (const text of payloads) {
        add("user", text, []);
        const parts = [{ type: "text", text }, { type: "python", text }, { type: "output", text }];
        add("assistant", text, parts, text);
    }
    const titles = payloads.map((title, number) => ({ id: `title ${number}`, title, nodes: {}, chosen: {} }));
    const all = [{ id: "all", title: payloads[0], nodes, chosen }, ...titles];
    localStorage.setItem(`${store}.conversations`, JSON.stringify(all));
}"""
FIND_MARKUP = f"""() => {{
    const bad = (node) => [...node.querySelectorAll(":is({ELEMENTS})")].map((one) => one.outerHTML)
        .concat([...node.querySelectorAll("*")].filter((one) => [...one.attributes].some(({{name}}) =>
            name.startsWith("on") || ["style", "src", "srcset", "srcdoc", "id", "name"].includes(name) ||
            (name === "href" && one.localName !== "a")))
            .map((one) => one.outerHTML))
        .concat([...node.querySelectorAll("a")].filter((one) =>
            !["http:", "https:", "mailto:"].includes(one.protocol) || !one.rel.includes("noopener"))
            .map((one) => one.outerHTML));
    return [...document.querySelectorAll(".message, #conversations")].flatMap((node) =>
        bad(node).map((html) => [node.textContent.slice(0, 80), html.slice(0, 200)]));
}}"""
