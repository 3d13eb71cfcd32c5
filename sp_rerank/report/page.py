"""A page as one file: template, style and script inline, under a policy that lets nothing else in.

Knows templates, escaping and the content security policy. Knows nothing of runs or scores.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def page(
    template: str, *, styles: tuple[str, ...], scripts: tuple[str, ...] = (), embedded: bool = False, **values: Any
) -> bytes:
    """Fill a template of this folder.

    Args:
        template: a file here that extends page.html.
        styles: CSS files here, in order.
        scripts: JavaScript files here, in order.
        embedded: The page holds its images itself, and reads no other file.
        **values: for the template; every one is escaped.

    Returns:
        The page in UTF-8; what UTF-8 has not becomes a question mark. Equal arguments give equal bytes.
    """
    style, script = (_inline("".join(map(_text, names))) for names in (styles, scripts))
    text = (
        _environment()
        .get_template(template)
        .render(**values, style=style, script=script, embedded=embedded, policy=_policy(style, script, embedded))
    )
    return text.encode("utf-8", "replace")


def _text(name: str) -> str:
    return files("sp_rerank.report").joinpath("templates", name).read_text("utf-8")


def _inline(text: str) -> Any:
    """Our own CSS or JavaScript, as it stands: between its tags nothing is escaped."""
    from markupsafe import Markup

    return Markup("\n" + text if text else "")


def _policy(style: str, script: str, embedded: bool) -> str:
    """Only our own style and script, identified by their hashes, and images of this folder or disk, run or are shown.

    Of a page that holds its images, only those.
    What 'self' means on a page from the disk is not settled (w3c/webappsec-csp, issue 459): `file:` stands beside it.
    """
    styles, scripts = (f"'sha256-{_digest(text)}'" for text in (style, script))
    images = "data:" if embedded else "'self' file:"
    rules = ["default-src 'none'", f"img-src {images}", f"style-src {styles}", f"script-src {scripts}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
