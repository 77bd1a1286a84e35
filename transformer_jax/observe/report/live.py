"""A run's page served on this machine alone, while the run trains: no file is served, and nothing can be changed.

Only requests for a name of this machine are answered. A web page of another server, whose name was made to point at
127.0.0.1 (DNS rebinding), sends its own name and is refused.
"""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from transformer_jax import pages
from transformer_jax.errors import InputError, RunError, first_line
from transformer_jax.observe.report import contents, recorded
from transformer_jax.runs import store

NAMES = ("127.0.0.1", "localhost", "::1")
SECONDS = 10  # between two pages of a run on a disk
SECONDS_REMOTE = 30  # between pages of a run in a bucket, whose files are copied for each page
SHARE = 0.05  # the largest share of the time that is spent on making pages
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{pages.POLICY}; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Live:
    """The pages of a run. A page is made again only where it is older than the interval, which grows with its cost.

    Args:
      path: the path of the run, a folder or a URL.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.seconds = SECONDS_REMOTE if store.remote(path) else SECONDS
        self.run: recorded.Recorded | None = None
        self.made = 0.0

    def page(self, *, follow: bool) -> str:
        """The page as it is now.

        Args:
          follow: whether the browser loads it again while the run trains.

        Raises:
          InputError, RunError, OSError: the run cannot be read now.
        """
        with self.lock:
            began = time.monotonic()
            if self.run is None or began - self.made >= self.seconds / 2:
                with recorded.local(self.path) as folder:
                    self.run = recorded.read(folder, self.path)
                self.made = time.monotonic()
            run = self.run
            trains = bool(run.owner) or not run.results
            link = pages.link("Stop following", "/?still") if follow else pages.link("Follow", "/")
            when = f"As of {time.strftime('%H:%M:%S')}, "
            every = f"loaded again every {self.seconds} seconds. " if follow and trains else "not loaded again. "
            lead = pages.element("p", when, every, link)
            text = contents.render(run, refresh=self.seconds if follow and trains else 0, lead=lead)
            self.seconds = max(self.seconds, int((time.monotonic() - began) / SHARE))
            return text


def server(path: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the run's page on 127.0.0.1; `serve_forever` runs it.

    Args:
      path: the path of the run.
      port: 0: any that is free.

    Raises:
      InputError: the port is in use, or there is no run.
    """
    live = Live(path)
    live.page(follow=True)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), _handler(live.page))
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} cannot be opened ({error}); give another --port, or 0 for any") from None


def _handler(page: Callable[..., str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET and HEAD of / for a name of this machine; every other request gets an error without content."""

        server_version, sys_version, timeout = "transformer_jax", "", 30.0

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            status, text = self._found()
            data = text.encode()
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def _found(self) -> tuple[HTTPStatus, str]:
            if not _is_of_this_machine(self.headers.get_all("Host", [])):
                return HTTPStatus.FORBIDDEN, "This server answers requests for 127.0.0.1 and localhost.\n"
            where, _, query = self.path.partition("?")
            if where != "/" or query not in ("", "still"):
                return HTTPStatus.NOT_FOUND, "There is one page, /.\n"
            try:
                return HTTPStatus.OK, page(follow=query != "still")
            except (InputError, RunError, OSError) as error:
                return HTTPStatus.SERVICE_UNAVAILABLE, pages.page("The run cannot be read", [], lead=first_line(error))

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed for a request."""

    return Handler


def _is_of_this_machine(hosts: list[str]) -> bool:
    """Whether the one Host header names this machine, with any port: a tunnel may have another one."""
    try:
        return len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in NAMES
    except ValueError:
        return False
