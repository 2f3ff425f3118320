"""What a process and its children find in the environment: threads, the home folder, proxies."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from reactune.errors import hide_passwords

SPINS = "1000"  # of libgomp, OpenMP's library in PyTorch and llama.cpp
MATRIX_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
OWN_MACHINE = ("localhost", "127.0.0.1", "::1")


def limit_spinning() -> None:
    """Let OpenMP's threads of this process spin for some fifty microseconds, then sleep.

    Threads that spin longer starve each other on a busy machine, those that sleep at once lose two
    thirds of their time to waking up (`bench/threads.py`). Called before PyTorch is imported; a
    value that the user has set stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def multiply_with_one_thread() -> list[str]:
    """Let numpy multiply matrices with one thread, here and in children; the variables set for it.

    For processes that do many small products beside others: its threads would wait for each other
    and take twice the processor time (`bench/pii.py`). Called before numpy is imported; a value
    that the user has set stays.
    """
    added = [name for name in MATRIX_THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    return added


def have_a_home() -> None:
    """Let `/` be the home of a user id that the system does not know, as Docker does.

    Libraries such as MLflow cannot be imported without one.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def ask_own_machine_directly() -> None:
    """Keep a proxy of the environment out of requests to this machine, here and in children.

    A model server or MLflow on this machine cannot be reached through `HTTP_PROXY`, and programs in
    Go never try to; Python's libraries do, unless `NO_PROXY` names the host.
    """
    proxies = [name for name in os.environ if name.lower().endswith("_proxy") and os.environ[name]]
    if {name.lower() for name in proxies} <= {"no_proxy"}:
        return
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")
    excepted = [each.strip() for each in known if each.strip()]
    if "*" not in excepted:
        excepted += [host for host in OWN_MACHINE if host not in excepted]
    # Libraries differ in which of the two they read.
    os.environ.update(dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(excepted)))


def server_address(url: str) -> str:
    """The address of an HTTP server, to which paths are added.

    White space and slashes at its ends do not count, nor does the `/v1` that OpenAI's clients want
    at its end.

    Raises:
        ValueError: there is no `http://` or `https://`, no host or no such port in it, or more than
            an address; the message does not quote it.
    """
    address = re.sub(r"/*(/v1/*)?$", "", url.strip())
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or re.search(r"\s", address):
        raise ValueError("write http:// or https://, host and port, such as http://localhost:8765")
    return address


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL (`HTTP_PROXY`, `NO_PROXY`, ...)."""
    place = urlsplit(url)
    if proxy_bypass(place.hostname or ""):
        return None
    return getproxies().get(place.scheme)


def by_proxy(url: str) -> str:
    """How an error names the proxy on the way to a URL; nothing where there is none."""
    proxy = proxy_of(url)
    return f" by way of the proxy {hide_passwords(proxy)} (NO_PROXY excepts hosts)" if proxy else ""
