"""Artifacts by URI: what says what the model is, without its weights; limited, verified, kept."""

from dippm_operator.fetch.cache import ArtifactCache
from dippm_operator.fetch.credentials import Credentials
from dippm_operator.fetch.fetcher import Fetcher
from dippm_operator.fetch.http import shown
from dippm_operator.fetch.limits import HUB, LINK_LOCAL, LOOPBACK, PRIVATE, FetchLimits
from dippm_operator.fetch.result import Fetched

__all__ = [
    "HUB",
    "LINK_LOCAL",
    "LOOPBACK",
    "PRIVATE",
    "ArtifactCache",
    "Credentials",
    "FetchLimits",
    "Fetched",
    "Fetcher",
    "shown",
]
