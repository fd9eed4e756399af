"""Proxies that the environment sets for WebSocket connections."""

import socket
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from picows import WSParsedURL
from python_socks.async_.asyncio import Proxy

from k2cli.errors import ConfigError
from k2cli.urls import check_password

# The schemes: what python-socks calls them, and whether the proxy resolves host names.
_SOCKS: Final = {
    "socks4": ("socks4", False),
    "socks4a": ("socks4", True),
    "socks5": ("socks5", False),
    "socks5h": ("socks5", True),
}
_HTTP: Final = ("http", "https")
_SOCKS_PORT: Final = 1080
_PROXY: Final = "the proxy from the environment"
_HINT: Final = (
    "set HTTPS_PROXY to http://HOST:PORT or socks5h://HOST:PORT, and exceptions in NO_PROXY"
)

Connect = Callable[[WSParsedURL], Awaitable[socket.socket]]


def proxy_for(url: str) -> str | None:
    """Return the proxy URL that the environment sets for a WebSocket URL, if any.

    A URL without a scheme means an HTTP proxy, as in curl. SOCKS is preferred to HTTP, as RFC 6455
    asks for (section 4.1).

    Raises:
        ConfigError: the value is not a proxy URL.
    """
    target = urlsplit(url)
    if proxy_bypass(target.netloc.rpartition("@")[2]):
        return None
    variables = getproxies()
    names = (
        ["wss", "socks", "https"] if target.scheme == "wss" else ["ws", "socks", "https", "http"]
    )
    name = next((name for name in names if variables.get(name)), None)
    if name is None:
        return None
    proxy = variables[name]
    if name == "socks":  # which getproxies takes for HTTP
        proxy = proxy.replace("http://", "socks5h://", 1)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    check_password(proxy, _PROXY, ConfigError)
    return _checked(proxy)


def socks_connector(proxy: str | None) -> Connect | None:
    """Return what connects a socket to a WebSocket's server through a SOCKS proxy, if it is one."""
    scheme, _, rest = (proxy or "").partition("://")
    if scheme.lower() not in _SOCKS:
        return None
    name, resolves_names = _SOCKS[scheme.lower()]

    async def connect(target: WSParsedURL) -> socket.socket:
        tunnel = Proxy.from_url(f"{name}://{rest}", rdns=resolves_names)
        return await tunnel.connect(target.host, target.port)

    return connect


def _checked(proxy: str) -> str:
    """Check a proxy's URL, and add the port of SOCKS if it has none."""
    try:
        parts = urlsplit(proxy)
        port = parts.port
        if parts.scheme not in (*_SOCKS, *_HTTP):
            raise ValueError(f"scheme {parts.scheme} is not supported")
        if not parts.hostname:
            raise ValueError("it has no host")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("only a host and a port are expected")
        if parts.username and parts.password is None:
            raise ValueError("a user without a password")
        if parts.scheme in _SOCKS and port is None:
            return f"{proxy.rstrip('/')}:{_SOCKS_PORT}"
    except ValueError as exc:
        raise ConfigError(f"{_PROXY}: {exc}", hint=_HINT) from exc
    return proxy
