"""Who may ask this server for what: a token once, a cookie from then on, and nothing from another page.

A page on any website can send requests to 127.0.0.1, and a name of its own can be made to point there (DNS rebinding).
So the Host header has to be an address of this server, a POST has to come from its own pages, and everything but the
way in needs a cookie that other sites cannot send. Knows HTTP; knows nothing of what is asked.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 4096  # of the body of a request
TOKEN_BYTES = 16
LOCAL = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Keys:
    """The tokens of the links and the cookies that they are exchanged for.

    Args:
        people: Names, each of which gets a link of its own.

    Attributes:
        tokens: The token of each link, by name.
    """

    def __init__(self, people: tuple[str, ...]) -> None:
        self.tokens = {name: secrets.token_urlsafe(TOKEN_BYTES) for name in people}
        self._cookies = {name: secrets.token_urlsafe(TOKEN_BYTES) for name in people}

    def cookie_for(self, token: str) -> str | None:
        """The cookie that a token is exchanged for; None for one that is not of these."""
        name = _find(self.tokens, token)
        return None if name is None else self._cookies[name]

    def person(self, cookie: str) -> str | None:
        """Whose cookie it is; None for one that is not of these."""
        return _find(self._cookies, cookie)


def _find(secrets_by_name: Mapping[str, str], given: str) -> str | None:
    """The name of a secret, in a time that does not depend on how much of it is right."""
    found = None
    for name, secret in secrets_by_name.items():
        if secrets.compare_digest(secret.encode(), given.encode("utf-8", "replace")):
            found = name
    return found


class Gate:
    """Lets through what may come, with the person's name in the scope's state; refuses the rest.

    Args:
        app: What is behind it.
        keys: Of the people.
        host: That the server listens on.
        port: As well.
    """

    def __init__(self, app: ASGIApp, keys: Keys, host: str, port: int) -> None:
        self.app, self._keys, self._host, self._port = app, keys, host, port
        self.cookie = f"sp-rerank-{port}"  # cookies know no ports, and there may be two servers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self._answer(scope) or self.app
            await answer(scope, _limited(receive), _guarded(send))

    def _answer(self, scope: Scope) -> Response | None:
        """What is said at the gate; None lets the request through."""
        headers, request = Headers(scope=scope), Request(scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("This server answers to its own address only.", 421)
        if scope["method"] not in ("GET", "HEAD") and not _from_own_page(headers, host):
            return PlainTextResponse("Only this server's own pages may change something.", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:9]) > MOST_BYTES:
            return PlainTextResponse("Too much.", 413)
        token = request.query_params.get("token")
        if scope["path"] == "/" and token is not None:
            return self._way_in(token)
        person = self._keys.person(request.cookies.get(self.cookie, ""))
        if person is None:
            return PlainTextResponse("Open the link that sp-rerank label printed: it holds the key to this page.", 403)
        scope.setdefault("state", {})["person"] = person
        return None

    def _way_in(self, token: str) -> Response:
        cookie = self._keys.cookie_for(token)
        if cookie is None:
            return PlainTextResponse("This link is of an earlier start; open the one that was printed last.", 403)
        # A redirect would still belong to the site that the link was on, and the cookie would not be sent along.
        # Without an icon of its own a browser asks for /favicon.ico, if the page is shown long enough.
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>sp-rerank</title>'
            '<link rel="icon" href="/icon.svg"><meta http-equiv="refresh" content="0;url=/">'
            '<a href="/">Go on</a></html>'
        )
        response = Response(page, media_type="text/html")
        response.set_cookie(self.cookie, cookie, httponly=True, samesite="strict", path="/")
        return response

    def _is_ours(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if port != str(self._port):
            return False
        if name in LOCAL or name == self._host or name == f"[{self._host}]":
            return True
        return self._host in EVERYWHERE and _is_address(name)  # a name could be anybody's


def _from_own_page(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site", "same-origin")
    origin = urlsplit(headers.get("origin", ""))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return site == "same-origin" and (origin.scheme, origin.netloc) == ("http", host) and kind == "application/json"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _limited(receive: Receive) -> Receive:
    """The same body, cut off where it is too long whatever its header says; what is cut is no JSON."""
    left = MOST_BYTES

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        body = message.get("body", b"")
        if len(body) > left:
            return {"type": "http.request", "body": b"", "more_body": False}
        left -= len(body)
        return message

    return limited


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                if name not in headers:
                    headers[name] = value
        await send(message)

    return guarded
