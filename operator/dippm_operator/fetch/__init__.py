"""Artifacts by URI: streamed, limited, verified."""

from dippm_operator.fetch.cache import ArtifactCache
from dippm_operator.fetch.fetcher import Fetcher
from dippm_operator.fetch.http import shown
from dippm_operator.fetch.limits import LINK_LOCAL, LOOPBACK, FetchLimits
from dippm_operator.fetch.result import Fetched

__all__ = ["LINK_LOCAL", "LOOPBACK", "ArtifactCache", "FetchLimits", "Fetched", "Fetcher", "shown"]
