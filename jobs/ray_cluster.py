"""Joining a Ray cluster that runs, or starting one here."""

import logging
import os
import socket
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, first_line
from quantize.packages import install_command

CONNECT_S = 10.0
TOKEN = Path("~/.ray/auth_token")


def connect(address: str | None) -> None:
    """``address``: ``host:port`` or ``auto``; default: $RAY_ADDRESS, else a cluster is started here. Errors:
    BadInput where Ray is not installed or no cluster answers."""
    # A cluster of `ray start` asks for a token unless told not to; `auto` brings it along, an address does
    # not.
    if (
        any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or TOKEN.expanduser().is_file()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise BadInput(f"--executor ray: needs Ray; install with: {install_command('ray')}") from None
    address = address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise BadInput(
            f"--address {address}: this is a Ray client's address, but this program must run "
            "inside the cluster; start it on a machine of the cluster with host:port or auto"
        )
    if address and address != "auto":
        _must_answer(address)
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if not address:
        options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address or "local", error) from None


def _must_answer(address: str) -> None:
    """Ray itself would knock for minutes. Errors: BadInput."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> BadInput:
    return BadInput(
        f"--address {address}: no Ray cluster there ({first_line(error)}); `ray start --head` starts one, "
        "host:port is its address"
    )
