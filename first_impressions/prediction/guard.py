"""What a visitor of app.py's page may ask of its server: the page, and the files that this visitor has brought.

The gate stands between the browser and Gradio as ASGI middleware (asgi.readthedocs.io). It knows visitors by a cookie
with a random number, notes who brought which file, and refuses everything else: files of others, addresses that Gradio
would fetch from the internet, names by which another site could reach this machine (DNS rebinding), and all of Gradio's
own pages that this page does not need. When the last page of a visitor closes, the files are deleted.
"""
import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import unquote

API = "/gradio_api/"
# Answered without a cookie: what every browser gets to see, and what Gradio asks itself when it starts.
OPEN_PATHS = re.compile(r"/|/(assets|static)/.*|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|"
                        rf"{API}(startup-events|theme\.css)")
VISITOR_PATHS = re.compile(rf"{API}(upload|upload_progress|queue/join|queue/data|cancel|reset|info|app_id|"
                           r"heartbeat/[A-Za-z0-9]+|file=.+)")
HEARTBEAT, FILE, JOIN, UPLOAD = (f"{API}{name}" for name in ("heartbeat/", "file=", "queue/join", "upload"))
MOST_BYTES = 4_000_000  # of a request that is no upload
# The browser itself refuses to load anything from elsewhere. Gradio needs inline styles and scripts.
HEADERS = {
    b"content-security-policy": b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:"
                                b"; style-src 'self' 'unsafe-inline'; object-src 'none'; frame-ancestors 'none'; "
                                b"base-uri 'self'; form-action 'self'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}

Message = dict
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Visitors:
    """Who is here and whose files are where. Safe to use from several threads."""

    def __init__(self, forget_page: Callable[[str], None] = lambda page: None):
        """forget_page: called with the session hash of each page that closes."""
        self.forget_page = forget_page
        self.lock = threading.Lock()
        self.pages: dict[str, set[str]] = {}    # visitor: session hashes of the open pages
        self.owners: dict[str, set[str]] = {}   # path of an uploaded file: visitors

    def new(self) -> str:
        """Return the unguessable number of a new visitor."""
        visitor = secrets.token_urlsafe(32)
        with self.lock:
            self.pages[visitor] = set()
        return visitor

    def knows(self, visitor: str | None) -> bool:
        return visitor in self.pages

    def owns(self, visitor: str, path: str) -> bool:
        """Return whether the visitor brought the file of this very path."""
        return visitor in self.owners.get(path, ())

    def bring(self, visitor: str, paths: list[str]) -> None:
        """Note that the visitor has uploaded these files. Equal files of two visitors have one path."""
        with self.lock:
            for path in paths:
                self.owners.setdefault(path, set()).add(visitor)

    def is_open(self, page: str) -> bool:
        """Return whether the page of a session hash is still open."""
        with self.lock:
            return any(page in pages for pages in self.pages.values())

    def open_page(self, visitor: str, page: str) -> None:
        with self.lock:
            self.pages[visitor].add(page)

    def close_page(self, visitor: str, page: str) -> None:
        """Forget a page; with the last one of a visitor delete the files that nobody else has brought."""
        self.forget_page(page)
        with self.lock:
            self.pages[visitor].discard(page)
            if self.pages[visitor]:
                return
            for path in [path for path, owners in self.owners.items() if visitor in owners]:
                self.owners[path].discard(visitor)
                if not self.owners[path]:
                    del self.owners[path]
                    _delete(Path(path))


def delete_older(folder: Path, seconds: float) -> None:
    """Delete all files below the folder that are older, finished or not."""
    # Not Path.rglob, which fails where a folder is deleted meanwhile.
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > seconds:
                    _delete(path)


def _delete(path):
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()  # fails where other files are left in it


class Gate:
    """ASGI middleware: add_middleware(Gate, visitors=..., hosts=...)."""

    def __init__(self, app: Callable, visitors: Visitors, hosts: list[str]):
        """hosts: the values of the header Host that are answered, such as 127.0.0.1:7860."""
        self.app, self.visitors, self.hosts = app, visitors, hosts
        # Browsers send a cookie to all ports of a machine, so its name holds the port.
        self.cookie = "visitor_" + hosts[0].rpartition(":")[2]

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # Gradio needs no web sockets
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        visitor = self._visitor(headers)
        if headers.get(b"host", b"").decode("latin-1") not in self.hosts:
            await _refuse(send, 421, "this server answers only to its own address")
        elif OPEN_PATHS.fullmatch(path):
            new = path == "/" and scope["method"] == "GET" and visitor is None
            await self.app(scope, receive, self._with_headers(send, self.visitors.new() if new else None))
        elif visitor is None or not VISITOR_PATHS.fullmatch(path):
            await _refuse(send, 403 if VISITOR_PATHS.fullmatch(path) else 404, "no such page; load the page again")
        else:
            await self._for_visitor(visitor, scope, receive, self._with_headers(send, None))

    async def _for_visitor(self, visitor, scope, receive, send):
        path = scope["path"]
        if path.startswith(HEARTBEAT):
            page = path.removeprefix(HEARTBEAT)
            self.visitors.open_page(visitor, page)
            try:
                await self.app(scope, receive, send)
            finally:
                self.visitors.close_page(visitor, page)
        elif path.startswith(FILE) and not self.visitors.owns(visitor, unquote(path.removeprefix(FILE))):
            await _refuse(send, 403, "not your file")
        elif path == JOIN:
            body = await _read(receive)
            if body is None or not all(self.visitors.owns(visitor, name) for name in _paths_in(body)):
                await _refuse(send, 403, "not your file, or it is deleted by now; choose it again")
                return
            await self.app(scope, _replay(body, receive), send)
        elif path == UPLOAD:
            await self.app(scope, receive, self._noting_files(visitor, send))
        else:
            await self.app(scope, receive, send)

    def _visitor(self, headers):
        with contextlib.suppress(CookieError, KeyError):
            visitor = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))[self.cookie].value
            return visitor if self.visitors.knows(visitor) else None
        return None

    def _with_headers(self, send, new_visitor):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in HEADERS]
                message["headers"] = [*kept, *HEADERS.items(), (b"cache-control", b"no-store")]
                if new_visitor:
                    text = f"{self.cookie}={new_visitor}; Path=/; HttpOnly; SameSite=Strict"
                    message["headers"].append((b"set-cookie", text.encode()))
            await send(message)
        return send_with_headers

    def _noting_files(self, visitor, send):
        """Return a send() that notes the paths in Gradio's answer before the browser has them."""
        status, answer = [], bytearray()

        async def send_and_note(message):
            if message["type"] == "http.response.start":
                status.append(message["status"])
            else:
                answer.extend(message.get("body", b""))
                if not message.get("more_body") and status == [200]:
                    self.visitors.bring(visitor, [str(path) for path in json.loads(answer)])
            await send(message)
        return send_and_note


def _paths_in(body: bytes) -> Iterator[str]:
    """Yield every path of a file in the JSON of a request, and every address that Gradio might fetch."""
    entries = [json.loads(body)]
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict):
            if isinstance(entry.get("path"), str):
                yield os.path.normpath(entry["path"]) if "://" not in entry["path"] else entry["path"]
            entries += entry.values()
        elif isinstance(entry, list):
            entries += entry


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body; None where it is too large, cut off or no JSON."""
    body = bytearray()
    while len(body) <= MOST_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            try:
                json.loads(body)
            except ValueError:
                return None
            return bytes(body)
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = []

    async def receive_again():
        if sent:
            return await receive()
        sent.append(True)
        return {"type": "http.request", "body": body, "more_body": False}
    return receive_again


async def _refuse(send: Send, status: int, reason: str) -> None:
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"application/json"), *HEADERS.items()]})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})
