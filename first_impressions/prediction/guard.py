"""Access to app.py's page: by its address alone, which holds a random token, and only by names of this computer.

Opening the printed address leaves the token as a cookie in the browser, as Jupyter does. A page elsewhere that reaches
this server by a name of its own (DNS rebinding) has neither. Names count, not ports, so an SSH tunnel to another port
works.
"""
import contextlib
import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "[::1]")
START_PATH = "/gradio_api/startup-events"  # which Gradio asks of itself
# The browser itself refuses to load anything from elsewhere. Gradio needs inline styles and scripts.
HEADERS = {
    "Content-Security-Policy": "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
                               "style-src 'self' 'unsafe-inline'; object-src 'none'; frame-ancestors 'none'; "
                               "base-uri 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def access_middleware(token: str) -> list[Middleware]:
    """Return the middleware that answers only requests that bring the token, made to a name of this computer."""
    return [Middleware(only_with_token, token=token), Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)]


def only_with_token(app: ASGIApp, token: str) -> ASGIApp:
    """Return the application behind a check: the token is in a cookie, or as ?token=... in the first address."""
    def is_token(text):
        return secrets.compare_digest((text or "").encode(errors="replace"), token.encode())

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        # Browsers send a cookie to all ports of a machine, so its name holds the port.
        cookie = "token_" + re.sub(r"\W", "_", request.headers.get("host", ""), flags=re.ASCII)
        is_first = is_token(request.query_params.get("token"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if is_first:
                    headers.append("Set-Cookie", f"{cookie}={token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        answer = app
        if not (is_first or scope["path"] == START_PATH or is_token(request.cookies.get(cookie))):
            answer = PlainTextResponse("Open the address that app.py has printed: it ends in ?token=...\n", 401)
        with contextlib.suppress(ClientDisconnect):  # an upload that breaks off is not worth a traceback
            await answer(scope, receive, send_with_headers)

    return checked
