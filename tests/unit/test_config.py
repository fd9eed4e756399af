"""Settings: where they come from, and what is wrong with them."""

from pathlib import Path

import pytest

from k2cli.config import load_settings, parse_duration_s, redacted
from k2cli.errors import ConfigError


def write(folder: Path, text: str) -> dict[str, str]:
    (folder / "k2.toml").write_text(text)
    return {"K2_HOME": str(folder)}


def test_defaults_need_nothing(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path)})
    assert settings.home == tmp_path
    assert settings.file is None
    assert settings.stream.flush_rows == 100_000
    assert settings.table.keep_snapshots == 20


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    env = write(tmp_path, '[stream]\nflush_rows = 5\nflush_interval = "1m"\n')
    settings = load_settings({**env, "K2_STREAM_FLUSH_ROWS": "7"})
    assert settings.file == tmp_path / "k2.toml"
    assert settings.stream.flush_rows == 7
    assert settings.stream.flush_interval == 60


def test_config_variable_names_another_file(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[table]\nkeep_snapshots = 3\n")
    assert load_settings({"K2_CONFIG": str(other)}).table.keep_snapshots == 3


def test_catalog_takes_any_property(tmp_path: Path) -> None:
    env = write(tmp_path, '[catalog]\nuri = "http://127.0.0.1:1"\n"s3.region" = "x"\n')
    env["K2_CATALOG_S3__ACCESS_KEY_ID"] = "key"
    assert load_settings(env).catalog == {
        "uri": "http://127.0.0.1:1",
        "s3.region": "x",
        "s3.access-key-id": "key",
    }


def test_kafka_and_registry_take_any_setting(tmp_path: Path) -> None:
    text = """
        [kafka]
        bootstrap.servers = "file:9092"
        "security.protocol" = "SASL_SSL"
        enable.ssl.certificate.verification = true
        linger.ms = 5
        [schema_registry]
        url = "http://file:8081"
    """
    env = write(tmp_path, text) | {
        "K2_KAFKA_BOOTSTRAP_SERVERS": "env:9092",
        "K2_KAFKA_SASL_MECHANISM": "PLAIN",
        "K2_KAFKA_LOG_LEVEL": "7",
        "K2_SCHEMA_REGISTRY_URL": "http://env:8081",
        "K2_SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": "me:hush",
    }
    settings = load_settings(env)
    assert settings.kafka == {
        "bootstrap.servers": "env:9092",
        "security.protocol": "SASL_SSL",
        "enable.ssl.certificate.verification": "true",
        "linger.ms": "5",
        "sasl.mechanism": "PLAIN",
        "log_level": "7",
    }
    assert settings.schema_registry == {"url": "http://env:8081", "basic.auth.user.info": "me:hush"}


@pytest.mark.parametrize(
    ("text", "env", "message", "hint"),
    [
        ("[tabel]\n", {}, r"\[tabel\] in .*k2.toml", "table"),
        ("[table]\nkeep_fro = 1\n", {}, r"table.keep_fro in .*k2.toml", "keep_for"),
        ("[table]\nkeep_for = 60\n", {}, r"table.keep_for \(from .*k2.toml\): 60 needs", None),
        ("[table]\nkeep_snapshots = 0\n", {}, r"table.keep_snapshots .*>= 1", None),
        ("table = 3\n", {}, r"not a section", None),
        ("[table\n", {}, r"k2.toml cannot be read", None),
        ("", {"K2_STREAM_FLUSH_ROW": "1"}, "variable K2_STREAM_FLUSH_ROW", "K2_STREAM_FLUSH_ROWS"),
        ("", {"K2_STREAM_FLUSH_ROWS": "many"}, "variable K2_STREAM_FLUSH_ROWS", None),
        ("", {"K2_CONFIG": "/nowhere.toml"}, "/nowhere.toml does not exist", "K2_CONFIG"),
    ],
)
def test_wrong_settings_name_key_and_origin(
    tmp_path: Path, text: str, env: dict[str, str], message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings({**write(tmp_path, text), **env})
    if hint:
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("60s", 60), ("1.5h", 5400), ("7d", 604_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "s", "-5s", "5 s", "1h30m", "1e3s"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("s3.secret-access-key", "hush", "********"),
        ("s3.access-key-id", "hush", "********"),
        ("token", "hush", "********"),
        ("sasl.password", "hush", "********"),
        ("ssl.key.pem", "hush", "********"),
        ("basic.auth.user.info", "me:hush", "********"),
        ("sasl.oauthbearer.client.secret", "hush", "********"),
        ("uri", "postgresql://me:hush@db/k2", "postgresql://me:********@db/k2"),
        ("warehouse", "s3://bucket", "s3://bucket"),
    ],
)
def test_secrets_are_hidden(key: str, value: str, shown: str) -> None:
    assert redacted(key, value) == shown
