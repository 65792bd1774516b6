"""Renders one self-contained HTML page: style inside, no script, nothing loaded from elsewhere.

Every page extends `base.html` and is rendered with everything escaped, without characters that reorder text; only
`chart.py` makes markup.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.report.run_data import printable_text

if TYPE_CHECKING:
    from jinja2 import Environment


@cache  # compiling the templates takes longer than rendering them
def make_environment(package: str) -> Environment:
    """Returns the environment of the templates of fledgling/`package`, which may extend those of the report."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader("fledgling", package), PackageLoader("fledgling", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable_text(value) if type(value) is str else value,  # not of Markup
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(package: str, template: str, **contents: Any) -> str:
    """Returns `template` of fledgling/`package` as a page; every value that the template uses must be in `contents`."""
    from markupsafe import Markup

    style = Markup((Path(__file__).parent / "style.css").read_text("utf-8"))
    now = datetime.now(UTC)
    times = {"created": now.strftime("%Y-%m-%d %H:%M UTC"), "unix_time": f"{now.timestamp():.3f}"}
    return make_environment(package).get_template(template).render(style=style, **times, **contents)
