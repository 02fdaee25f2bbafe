"""Addresses a server may listen on: this machine alone, a private network by its address, any other only if a person insists."""

from __future__ import annotations

import ipaddress
import socket

INSIST = "--i-know-this-network-is-private"


def check_host(host: str, *, insists: bool) -> str:
    """The address to listen on. Raises: ValueError for all interfaces, or a public one, unless a person insists.

    Anybody who reaches the server and has the token can replace its weights; the token itself travels unencrypted.
    """
    address = _address_of(host)
    if address is None:
        raise ValueError(f"--host {host!r} is no address of this machine's network")
    if address.is_unspecified and not insists:
        raise ValueError(
            f"--host {host or '(empty)'} listens on every network this machine is in; name one address, or add {INSIST}"
        )
    if not (address.is_loopback or address.is_private or address.is_link_local or insists):
        raise ValueError(f"--host {host} is a public address; use a private network or an ssh tunnel, or add {INSIST}")
    return str(address)


def is_on_this_machine(url: str) -> bool:
    """True if the host of a URL is a loopback address."""
    from urllib.parse import urlparse

    address = _address_of(urlparse(url).hostname or "")
    return address is not None and address.is_loopback


def free_port(host: str = "127.0.0.1") -> int:
    """A port nothing listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if host in ("", "*"):
        return ipaddress.ip_address("0.0.0.0")
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.ip_address(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, ValueError):
        return None
