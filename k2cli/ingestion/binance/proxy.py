"""The proxy for a connection, from the environment: HTTPS_PROXY, SOCKS_PROXY and NO_PROXY."""

from importlib.util import find_spec
from urllib.parse import urlsplit

from websockets.exceptions import InvalidProxy
from websockets.proxy import get_proxy, parse_proxy
from websockets.uri import parse_uri

from k2cli.errors import ConfigError
from k2cli.urls import check_password

_SOCKS_PORT = 1080
_WHAT = "the proxy from the environment"
_HINT = "like http://HOST:PORT or socks5h://HOST:PORT in HTTPS_PROXY; NO_PROXY names exceptions"


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that the environment names for a WebSocket URL, if any.

    Without a scheme it is an HTTP proxy, as for curl.

    Raises:
        ConfigError: what is set is not the URL of a proxy, or its kind needs a missing package.
    """
    proxy = get_proxy(parse_uri(url))
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    check_password(proxy, _WHAT, ConfigError)
    try:
        kind = parse_proxy(proxy).scheme
        is_socks = kind.startswith("socks")
        if is_socks and urlsplit(proxy).port is None:
            proxy = f"{proxy.rstrip('/')}:{_SOCKS_PORT}"
    except (InvalidProxy, ValueError) as exc:
        raise ConfigError(f"{_WHAT}: {exc}", hint=_HINT) from exc
    if is_socks and find_spec("python_socks") is None:
        raise ConfigError(
            f"{_WHAT} is a {kind} proxy, which needs python-socks",
            hint="pip install 'k2cli[socks]'",
        )
    return proxy
