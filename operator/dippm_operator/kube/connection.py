"""Where the API server is and how to prove who asks: `kubernetes.aio` finds out, at the edge and when asked again.

The only module that imports the Kubernetes client. What it can read is what kubernetes.aio.config can: a pod's service
account, whose token file it reads again every minute, or a kubeconfig with tokens, certificates, exec plugins, OIDC.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, incluster_config, load_incluster_config, load_kube_config

from dippm.errors import ManifestError

logger = logging.getLogger(__name__)

TOKEN = "BearerToken"
"""The name under which kubernetes.aio keeps the whole value of the Authorization header, scheme included."""

Load = Callable[[Configuration], Awaitable[None]]


async def _keep(configuration: Configuration) -> None:
    """Fixed settings have nothing to be read again."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server and an identity."""

    configuration: Configuration
    """kubernetes.aio's: `host`, `ssl_ca_cert`, `verify_ssl`, `cert_file`, `key_file`, `proxy`, ..."""
    load: Load = _keep
    """Reads identity and trust from their source into the configuration, now and whenever the server says 401."""
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    @staticmethod
    async def from_environment(kubeconfig: str | None = None) -> Connection:
        """The given kubeconfig, else the pod's service account, else `$KUBECONFIG` or `~/.kube/config`."""
        if kubeconfig:
            return await Connection.from_kubeconfig(Path(kubeconfig))
        in_a_pod = incluster_config.SERVICE_HOST_ENV_NAME in os.environ
        if in_a_pod and Path(incluster_config.SERVICE_TOKEN_FILENAME).exists():
            return await Connection.from_service_account()
        return await Connection.from_kubeconfig(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")

    @staticmethod
    async def from_service_account() -> Connection:
        """What kubelet mounts into a pod (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).

        Raises ManifestError where something of it is missing.
        """

        async def load(configuration: Configuration) -> None:
            try:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except (ConfigException, OSError) as error:
                raise ManifestError(f"service account: {error}; mount its token or give --kubeconfig") from error

        return await _connected(load)

    @staticmethod
    async def from_kubeconfig(path: str | Path) -> Connection:
        """The current context of a kubeconfig file, or of several joined with `:` as $KUBECONFIG may have them.

        Raises ManifestError where it is missing, or is no kubeconfig.
        """

        async def load(configuration: Configuration) -> None:
            try:
                if not any(Path(part).expanduser().exists() for part in str(path).split(os.pathsep)):
                    raise FileNotFoundError
                await load_kube_config(  # type: ignore[no-untyped-call]
                    str(path), client_configuration=configuration, persist_config=False
                )
            except ConfigException as error:
                raise ManifestError(f"{path}: {error}; give another kubeconfig with --kubeconfig") from error
            # The library takes the shape of a file for granted: a wrong one is a KeyError or TypeError inside.
            except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
                refusal = f"{path}: cannot be read as a kubeconfig; give its path with --kubeconfig"
                raise ManifestError(refusal) from error

        return await _connected(load)

    async def authorization(self) -> str | None:
        """The Authorization header's value, or None where a client certificate speaks for itself.

        Raises aiohttp.ClientConnectionError where a token that is due for reading cannot be read.
        """
        try:
            return await self.configuration.get_api_key_with_prefix(TOKEN)
        except (ConfigException, OSError) as error:
            raise aiohttp.ClientConnectionError(f"the service account's token cannot be read: {error}") from error

    async def renew(self, refused: str | None) -> bool:
        """Read the identity again, once for all who were refused with it; whether there is another one now."""
        async with self._loading:
            if self.configuration.api_key.get(TOKEN) == refused:
                try:
                    await self.load(self.configuration)
                except ManifestError as error:
                    logger.warning("%s", error)
            return self.configuration.api_key.get(TOKEN) != refused

    def client(self) -> ApiClient:
        """kubernetes.aio's client, to be closed after use."""
        client = ApiClient(self.configuration)
        client.user_agent = "dippm"
        return client


async def _connected(load: Load) -> Connection:
    # A proxy is used where the kubeconfig says `proxy-url`. One of the environment is for fetching models: the API
    # server of a pod is in its cluster, and admission must not depend on a NO_PROXY that somebody forgot.
    configuration = Configuration(client_session_kwargs={"trust_env": False})
    await load(configuration)
    return Connection(configuration, load)
