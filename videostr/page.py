"""HTML pages without outside parts: style, code and data stand in one file.

Its content security policy lets nothing be loaded and no other script run. A template extends `page.html`.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup


def render_page(package: str, template: str, *scripts: str, **values: object) -> str:
    """Return a page.

    Args:
        package: where template and scripts lie, "videostr.report".
        template: file name.
        scripts: file names; they run after that of charts.
        values: of the template.
    """
    loaders = [PackageLoader(package, "."), PackageLoader("videostr", ".")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    code = "\n".join([_text("videostr", "charts.js"), *(_text(package, name) for name in scripts)])
    shared: dict[str, Any] = {
        "style": Markup(_text("videostr", "page.css")),
        "script": Markup(code),
        "script_hash": base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
    }
    return environment.get_template(template).render(**shared, **values)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
