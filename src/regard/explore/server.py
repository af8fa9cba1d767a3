"""The page and its answers over HTTP, on Python's own server; nothing comes from any other machine."""

import json
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from regard.explore.answers import Answers
from regard.tasks.documents import InputError
from regard.train.budget import Budget

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {file.name: file for file in files("regard.explore").joinpath("page").iterdir()}
"""All that a GET can get."""

LARGEST = 48 << 20
"""Bytes of a question: an image in base 64."""

HERE = ("localhost", "127.0.0.1", "::1")
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
"""The browser itself refuses whatever is not ours."""


def serve(
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    budget: Budget | None = None,
    say: Callable[[str], None] = print,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: the address to listen at.
        port: 0 takes a free one.
        budget: of each training; None: 15 seconds.
        say: told in one line where the page is, and that it is over.
        ready: called with the page's address as soon as it can be opened.

    Raises:
        InputError: the port is taken, or the address is none of this machine.
    """
    server = make_server(host, port, Answers(budget or Budget(seconds=15)))
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{server.server_address[1]}/"
    say(f"{url}  (Ctrl-C ends it)")
    ready(url)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()


def make_server(host: str, port: int, answers: Answers) -> ThreadingHTTPServer:
    """A server that listens already.

    Raises:
        InputError: the port is taken, or the address is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port: choose one from 1024 to 65535")
    kind = _Server6 if ":" in host else _Server
    try:
        return kind((host, port), partial(_Handler, answers, host))
    except OSError as error:
        where = f"port {port} of {host}"
        raise InputError(
            f"cannot listen at {where}: {error.strerror or error}; if it is taken, choose another with --port, "
            "or --port 0 for any that is free"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would share a port that is taken
    request_queue_size = 32


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server_version, sys_version, protocol_version = "regard", "", "HTTP/1.1"

    def __init__(self, answers: Answers, host: str, *arguments: Any) -> None:
        self.answers, self.host = answers, host
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page and its parts."""
        file = FILES.get(urlsplit(self.path).path[1:] or "index.html")
        if file is None or not self._from_here():
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"nothing is here; the page is /\n")
            return
        self._send(HTTPStatus.OK, KINDS[PurePath(file.name).suffix], file.read_bytes())

    def do_POST(self) -> None:
        """``/api/NAME`` with JSON."""
        answer = self.answers.by_name.get(self.path.removeprefix("/api/"))
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > LARGEST:
            self.close_connection = True  # what was not read would be taken for the next request
            self._tell(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"more than {LARGEST >> 20} MB: too large for here"}
            )
            return
        body = self.rfile.read(int(size))
        if answer is None or not self._from_here() or "json" not in self.headers.get("Content-Type", ""):
            self._tell(HTTPStatus.NOT_FOUND, {"error": "nobody answers this here"})
            return
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            self._tell(HTTPStatus.BAD_REQUEST, {"error": "the question is no JSON object"})
            return
        try:
            self._tell(HTTPStatus.OK, answer(asked))
        except InputError as error:  # a refusal is an answer
            self._tell(HTTPStatus.OK, {"error": " ".join(str(error).split())})
        except Exception as error:
            traceback.print_exc()
            words = f"this is a defect of regard, please report it: {type(error).__name__}: {error}"
            self._tell(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": " ".join(words.split())})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is for errors."""

    def _from_here(self) -> bool:
        """Other pages that are open in the browser must not ask: neither by a name of theirs nor across origins."""
        given = self.headers.get("Host", "")
        name = urlsplit(f"//{given}").hostname
        if self.host in HERE and name not in HERE:
            return False
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == given

    def _tell(self, status: HTTPStatus, told: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(told).encode())

    def _send(self, status: HTTPStatus, kind: str, data: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader went away
