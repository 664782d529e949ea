"""What went wrong on the way to a server, in words for the user instead of a library's."""

from __future__ import annotations

import os
import ssl

import aiohttp


def in_words(error: Exception) -> str:
    """A clause of one line for what aiohttp, the socket or the URL's parser raised; any other: its first line."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        why = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "it is for another host"
        return f"the certificate of {_host(error)} is not trusted: {why}"
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ssl.SSLError):
            return f"{_host(error)} does not speak TLS"
        return f"{_host(error)}: {_of_system(error.os_error)}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer ended early"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what answers there does not speak HTTP"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ValueError):  # aiohttp's InvalidURL is one too
        return "it is not a sound URL"
    if isinstance(error, OSError):
        return _of_system(error)
    return _first_line(error) or "the connection failed"


def _host(error: aiohttp.ClientConnectorError) -> str:
    return f"{error.host}:{error.port}"


def _of_system(error: OSError) -> str:
    """As the system says it; asyncio puts addresses in the place of the words."""
    if isinstance(error.errno, int) and error.errno > 0:
        return os.strerror(error.errno).lower()
    said = error.strerror or _first_line(error)
    return said[:1].lower() + said[1:] if said else "the connection was closed"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
