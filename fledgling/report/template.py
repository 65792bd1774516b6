"""One self-contained HTML page from a room's template: style inside, no script, nothing fetched.

The one idea: every page extends `frame.html` and is rendered with everything escaped; only `chart.py` makes markup.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def render_page(room: str, template: str, **contents: Any) -> str:
    """Return `template` of fledgling/`room` as a page; `contents` are its values, every one used must be given."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("fledgling", room), PackageLoader("fledgling", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((Path(__file__).parent / "style.css").read_text("utf-8"))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(style=style, made=made, **contents)
