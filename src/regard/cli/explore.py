"""``regard explore``: start the page, and open it in a browser."""

import contextlib
import webbrowser

from regard.explore.server import serve
from regard.train.budget import Budget, parse_seconds


def run_explorer(*, port: int, host: str, open_: bool, budget: str) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: a port that is taken, an address that is not this machine's, or a budget that is no time.
    """
    serve(host, port, budget=Budget(seconds=parse_seconds(budget)), say=_say, ready=_open if open_ else _stay)


def _say(line: str) -> None:
    print(f"regard explore: {line}", flush=True)


def _open(url: str) -> None:
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(url)


def _stay(url: str) -> None:
    """The address was said; that is all."""
