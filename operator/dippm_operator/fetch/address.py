"""Names are resolved here and the forbidden addresses taken out, so that no name leads to them either."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from dippm_operator.fetch.limits import Network


class AddressBlocked(OSError):
    """A host is, or resolves only to, addresses that must not be connected to."""


def is_blocked(address: str, networks: Sequence[Network]) -> bool:
    """Whether a literal IP address lies in one of the networks (also written as an IPv4-mapped IPv6 address)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip.version == network.version and ip in network for network in networks)


def check_host(host: str, networks: Sequence[Network]) -> None:
    """Raise AddressBlocked if the host is itself a blocked address (aiohttp does not resolve literal addresses).

    `host` is the one that is connected to, as yarl encodes it and not as it was written: digits in circles and full
    width become an address there. What only looks like an address (`127.1`, `2130706433`) is one to getaddrinfo, which
    no resolver of ours would see, so it is refused too.
    """
    try:
        blocked = is_blocked(host, networks)
    except ValueError:
        if host.isascii() and not host.replace(".", "").isdigit() and ":" not in host:
            return  # a name: the resolver sees to it
        raise AddressBlocked(f"{host} is neither a name nor a whole address") from None
    if blocked:
        raise AddressBlocked(f"{host} is an address that models are not fetched from")


class FilteringResolver(AbstractResolver):
    """Resolves in a thread and leaves out blocked addresses."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        allowed = [result for result in found if not is_blocked(result["host"], self._networks)]
        if found and not allowed:
            raise AddressBlocked(f"{host} resolves to an address that models are not fetched from")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()
