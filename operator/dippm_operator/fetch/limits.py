"""What a download may take: bytes, seconds, hops, addresses."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LINK_LOCAL = tuple(
    map(
        ipaddress.ip_network,
        ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32"),
    )
)
"""Where clouds serve instance credentials (the last three: EC2 by IPv6, Alibaba, Azure): no model lies there."""
HUB = "https://huggingface.co"
LOOPBACK = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128")))
"""This host itself: the unspecified addresses lead there too."""
PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7", "64:ff9b::/96"),
    )
)
"""Networks of one's own (RFC 1918, 6598, 2544, 4193) and the way to them through NAT64: the cluster's Services, most
likely. Stores of one's own are there too."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits of one download. A user's URI is fetched with the operator's network, so addresses are limited too."""

    max_bytes: int = 32 * 1024**3
    """Largest artifact, bytes."""
    connect_seconds: float = 10.0
    """Longest wait for a connection."""
    read_seconds: float = 30.0
    """Longest silence while reading."""
    total_seconds: float = 1800.0
    """Longest download."""
    max_redirects: int = 5
    """Redirects that are followed; never from https to http."""
    blocked_networks: tuple[Network, ...] = (*LINK_LOCAL, *LOOPBACK)
    """Addresses that are never connected to, whatever name resolves to them."""
    file_roots: tuple[Path, ...] = ()
    """Folders that `file:` URIs must lie in; none allows no `file:` URI at all."""
    hub: str = HUB
    """Where `hf://` repositories are: Hugging Face, or a mirror of it (HF_ENDPOINT)."""
    cloud_storage: str = "https://storage.googleapis.com"
    """Where `gs://` buckets are."""
    google_tokens: str = "https://oauth2.googleapis.com/token"
    """Where a service account's key is exchanged for a token."""
    azure_authority: str = "https://login.microsoftonline.com"
    """Where a client's secret is exchanged for a token: Microsoft Entra ID."""
