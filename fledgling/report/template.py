"""Renders one self-contained HTML page: style inside, no script, nothing loaded from elsewhere.

Every page extends `base.html` and is rendered with everything escaped; only `chart.py` makes markup.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def render_page(package: str, template: str, **contents: Any) -> str:
    """Returns `template` of fledgling/`package` as a page; every value that the template uses must be in `contents`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("fledgling", package), PackageLoader("fledgling", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((Path(__file__).parent / "style.css").read_text("utf-8"))
    now = datetime.now(UTC)
    times = {"created": now.strftime("%Y-%m-%d %H:%M UTC"), "unix_time": f"{now.timestamp():.3f}"}
    return environment.get_template(template).render(style=style, **times, **contents)
