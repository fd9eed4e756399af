"""Which proxy the environment names, and what is said of one that cannot be used."""

import pytest

from k2cli.errors import ConfigError
from k2cli.ingestion.proxies import proxy_for

URL = "wss://exchange.example:9443/stream"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "socks_proxy", "wss_proxy", "ws_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_without_a_variable_there_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for(URL) is None
    monkeypatch.setenv("HTTPS_PROXY", "")
    assert proxy_for(URL) is None


@pytest.mark.parametrize(
    ("value", "proxy"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example", "http://proxy.example"),
        ("user:secret@proxy.example:3128", "http://user:secret@proxy.example:3128"),
        ("socks5h://proxy.example:9050", "socks5h://proxy.example:9050"),
        ("socks5://proxy.example/", "socks5://proxy.example:1080"),
        ("socks4://proxy.example", "socks4://proxy.example:1080"),
    ],
)
def test_proxy_with_and_without_a_scheme(
    monkeypatch: pytest.MonkeyPatch, value: str, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    assert proxy_for(URL) == proxy


def test_exceptions_go_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,.example")
    assert proxy_for(URL) is None


@pytest.mark.parametrize(
    "value",
    [
        "ftp://proxy.example",
        "http://",
        "http://proxy.example:port",
        "http://proxy.example:99999",
        "http://proxy.example/path",
        "http://[::1",
        "http://user@proxy.example",
    ],
)
def test_value_that_is_not_a_proxy_is_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError) as caught:
        proxy_for(URL)
    assert "http://HOST:PORT" in str(caught.value.hint)


def test_message_hides_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "user:secret@proxy.example/path")
    with pytest.raises(ConfigError) as caught:
        proxy_for(URL)
    assert "secret" not in str(caught.value)
