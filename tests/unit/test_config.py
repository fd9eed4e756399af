"""Settings: where they come from, and what is wrong with them."""

import re
from pathlib import Path

import msgspec
import pytest

from k2cli.config import (
    DEFAULT,
    Duration,
    Settings,
    documented_sections,
    load_settings,
    parse_duration_s,
    parse_size_bytes,
    settings_document,
)
from k2cli.errors import ConfigError
from k2cli.redaction import redact_setting

PROFILES = """
[table]
keep_snapshots = 3
keep_for = "1h"
[kafka]
bootstrap.servers = "file:9092"
linger.ms = 5
[profile.prod.table]
keep_for = "30d"
[profile.prod.kafka]
bootstrap.servers = "prod:9092"
[profile.test.kafka]
linger.ms = 7
"""


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
    assert settings.stream.flush_interval == Duration(60)


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
        pytest.param("[tabel]\n", {}, r"\[tabel\] in .*k2.toml", "table", id="unknown-section"),
        pytest.param(
            "[table]\nkeep_fro = 1\n",
            {},
            r"table.keep_fro in .*k2.toml",
            "keep_for",
            id="unknown-key",
        ),
        pytest.param(
            "[table]\nkeep_for = 60\n",
            {},
            r"table.keep_for \(from .*k2.toml\): 60 needs",
            None,
            id="duration-without-a-unit",
        ),
        pytest.param(
            "[table]\nkeep_snapshots = 0\n",
            {},
            r"table.keep_snapshots .*>= 1",
            None,
            id="number-too-small",
        ),
        pytest.param("table = 3\n", {}, r"not a section", None, id="section-is-a-number"),
        pytest.param("[table\n", {}, r"k2.toml cannot be read", None, id="not-toml"),
        pytest.param(
            "",
            {"K2_STREAM_FLUSH_ROW": "1"},
            "variable K2_STREAM_FLUSH_ROW",
            "K2_STREAM_FLUSH_ROWS",
            id="unknown-variable",
        ),
        pytest.param(
            "",
            {"K2_STREAM_FLUSH_ROWS": "many"},
            "variable K2_STREAM_FLUSH_ROWS",
            None,
            id="variable-not-a-number",
        ),
        pytest.param(
            "",
            {"K2_KAFAK_BOOTSTRAP_SERVERS": "x"},
            "variable",
            "K2_KAFKA_BOOTSTRAP_SERVERS",
            id="misspelt-kafka-variable",
        ),
        pytest.param(
            "",
            {"K2_SCHEMA_REGISTY_URL": "x"},
            "variable",
            "K2_SCHEMA_REGISTRY_URL",
            id="misspelt-registry-variable",
        ),
        pytest.param(
            "",
            {"K2_KAFKA": "x"},
            "unknown variable K2_KAFKA",
            "K2_",
            id="kafka-variable-without-a-key",
        ),
        pytest.param(
            "",
            {"K2_KAFKA_": "x"},
            "unknown variable K2_KAFKA_",
            "K2_",
            id="kafka-variable-with-an-empty-key",
        ),
        pytest.param(
            "",
            {"K2_PROFIL": "x"},
            "variable K2_PROFIL",
            "K2_PROFILE",
            id="misspelt-profile-variable",
        ),
        pytest.param(
            "",
            {"K2_CONFIG": "/nowhere.toml"},
            "/nowhere.toml does not exist",
            "k2 config init",
            id="config-file-missing",
        ),
        pytest.param(
            "", {"K2_RUN": "two words"}, "variable K2_RUN", "unset K2_RUN", id="run-with-a-space"
        ),
        pytest.param(
            "", {"K2_RUN": "x" * 65}, "variable K2_RUN", "unset K2_RUN", id="run-too-long"
        ),
        pytest.param(
            "",
            {"K2_KAFKA_BOOTSTRAP_SERVER": "a:1"},
            "kafka.bootstrap.server",
            "bootstrap.servers",
            id="misspelt-kafka-option-variable",
        ),
        pytest.param(
            '[kafka]\nbootstrap-servers = "a:1"',
            {},
            "kafka.bootstrap-servers",
            "bootstrap.servers",
            id="misspelt-kafka-option",
        ),
        pytest.param(
            "",
            {"K2_RUN": "bell\a"},
            "variable K2_RUN",
            "unset K2_RUN",
            id="run-with-a-control-character",
        ),
        pytest.param(
            "", {"K2_RUN": "\udc80"}, "variable K2_RUN", "unset K2_RUN", id="run-not-utf8"
        ),
        pytest.param(
            "[kafak]\n", {}, r"section \[kafak\] in .*k2.toml", "kafka", id="misspelt-section"
        ),
        pytest.param(
            "profile = 3\n", {}, "profile in .* is not a section", None, id="profile-is-a-number"
        ),
        pytest.param(
            "[profile]\nprod = 3\n",
            {},
            r"profile.prod in .* is not a section",
            None,
            id="profile-of-a-number",
        ),
        pytest.param(
            "[profile.prod]\nkafka = 3\n",
            {},
            r"profile.prod.kafka in .* is not a section",
            None,
            id="profile-section-is-a-number",
        ),
        pytest.param(
            "[profile.prod.kafak]\n",
            {},
            r"section \[profile.prod.kafak\]",
            "kafka",
            id="misspelt-section-of-a-profile",
        ),
        pytest.param(
            "[profile.prod.profile]\n",
            {},
            r"section \[profile.prod.profile\]",
            "known: catalog, kafka",
            id="profile-in-a-profile",
        ),
        pytest.param(
            "[profile.prod.table]\nkeep_fro = 1\n",
            {},
            r"key profile.prod.table.keep_fro",
            "keep_for",
            id="unknown-key-of-a-profile",
        ),
        pytest.param(
            PROFILES,
            {"K2_PROFILE": "prd"},
            r"unknown profile prd in .*k2.toml",
            "prod, test",
            id="unknown-profile",
        ),
        pytest.param(
            "",
            {"K2_PROFILE": "prod"},
            r"unknown profile prod: .* has none",
            "profile.prod.kafka",
            id="profile-without-a-file",
        ),
        pytest.param(
            "[profile.prod.table]\nkeep_for = 60\n",
            {"K2_PROFILE": "prod"},
            r"table.keep_for \(from .*k2.toml \[profile.prod\]\): 60 needs",
            None,
            id="wrong-value-of-a-profile",
        ),
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


@pytest.mark.parametrize("text", ["36501d", "99999999999d", f"{'9' * 400}s"])
def test_a_duration_is_at_most_a_century(text: str) -> None:
    assert parse_duration_s("36500d") == 36_500 * 86_400
    with pytest.raises(ValueError, match="is longer than 36500d"):
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["1048577TiB", f"{'9' * 400}TB"])
def test_a_size_is_at_most_an_exbibyte(text: str) -> None:
    assert parse_size_bytes("1048576TiB") == 2**60
    with pytest.raises(ValueError, match="is larger than 1048576TiB"):
        parse_size_bytes(text)


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
    assert redact_setting(key, value) == shown


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("header.authorization", "Bearer x", "********"),
        ("header.X-Mine", "x", "********"),
        ("sasl.jaas.config", "x", "********"),
        ("uri", "http://h/?token=zzz&a=1", "http://h/?token=********&a=1"),
        ("uri", "sql://u:pw@h/d?ssl_password=x", "sql://u:********@h/d?ssl_password=********"),
        ("uri", "s3://bucket/tokens?a=password", "s3://bucket/tokens?a=password"),
    ],
)
def test_secrets_in_headers_and_queries_are_hidden(key: str, value: str, shown: str) -> None:
    assert redact_setting(key, value) == shown


def test_a_list_is_written_with_commas(tmp_path: Path) -> None:
    env = write(tmp_path, '[kafka]\nbootstrap.servers = ["a:1", "b:2"]\n')
    assert load_settings(env).kafka == {"bootstrap.servers": "a:1,b:2"}


def test_a_profile_lies_over_the_file_key_by_key(tmp_path: Path) -> None:
    env = write(tmp_path, PROFILES)
    plain = load_settings(env)
    assert (plain.profile, plain.table.keep_for) == (None, Duration(3_600))
    prod = load_settings({**env, "K2_PROFILE": "prod"})
    assert prod.profile == "prod"
    assert (prod.table.keep_snapshots, prod.table.keep_for) == (3, Duration(30 * 86_400))
    assert prod.kafka == {"bootstrap.servers": "prod:9092", "linger.ms": "5"}


def test_the_option_wins_over_the_variable_and_variables_over_the_profile(tmp_path: Path) -> None:
    env = write(tmp_path, PROFILES) | {"K2_PROFILE": "prod", "K2_TABLE_KEEP_FOR": "2h"}
    assert load_settings(env).table.keep_for == Duration(7_200)
    settings = load_settings(env, profile="test")
    assert settings.kafka == {"bootstrap.servers": "file:9092", "linger.ms": "7"}


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    env = write(tmp_path, PROFILES) | {"K2_STREAM_FLUSH_ROWS": "7"}
    settings = load_settings(env, profile="prod")
    file = str(tmp_path / "k2.toml")
    assert settings.origins == {
        "home": "variable K2_HOME",
        "file": DEFAULT,
        "profile": "option --profile",
        "table.keep_snapshots": file,
        "table.keep_for": f"{file} [profile.prod]",
        "kafka.bootstrap.servers": f"{file} [profile.prod]",
        "kafka.linger.ms": file,
        "stream.flush_rows": "variable K2_STREAM_FLUSH_ROWS",
    }


def test_home_of_the_command_line_wins(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": "/elsewhere"}, home=tmp_path)
    assert (settings.home, settings.origins["home"]) == (tmp_path, "option --home")


def test_a_run_is_known_by_its_schedulers_id_or_a_random_one(tmp_path: Path) -> None:
    env = {"K2_HOME": str(tmp_path)}
    assert load_settings({**env, "K2_RUN": "job-7/été"}).run == "job-7/été"
    first, second = load_settings(env).run, load_settings({**env, "K2_RUN": ""}).run
    assert first != second
    assert re.fullmatch("[0-9a-f]{16}", first)


def test_long_durations_are_shown_as_they_can_be_read(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_FOR": "400d"})
    shown = settings_document(settings)["table"]["keep_for"]
    assert parse_duration_s(str(shown)) == 400 * 86_400


def test_api_key_is_never_in_texts_of_the_settings(tmp_path: Path) -> None:
    env = write(tmp_path, '[binance]\napi_key = "from-the-file"\n')
    assert load_settings(env).binance.api_key == "from-the-file"
    settings = load_settings({**env, "K2_BINANCE_API_KEY": "from-a-variable"})
    assert settings.binance.api_key == "from-a-variable"
    assert str(settings.binance.api_key) == "from-a-variable"  # as a header
    assert "from-" not in repr(settings)
    assert settings_document(settings)["binance"] == {"api_key": "********"}
    write(tmp_path, "[binance]\napi_key = 123456\n")
    with pytest.raises(ConfigError, match=r"binance\.api_key .*: expected a text") as caught:
        load_settings(env)
    assert "123456" not in str(caught.value)


def test_every_setting_is_documented() -> None:
    sections = documented_sections()
    known = msgspec.structs.asdict(Settings(home=Path("x")))
    known["home"] = known["access"]  # the section; `home` is the folder
    for name, (text, docs) in sections.items():
        assert text
        assert [doc.key for doc in docs] == list(known[name].__struct_fields__)
        assert all(doc.text and doc.example is not None for doc in docs)


@pytest.mark.parametrize("name", ["K2_HOME", "K2_CONFIG"])
def test_a_home_folder_of_nobody_is_an_error_that_names_the_setting(name: str) -> None:
    with pytest.raises(ConfigError, match="no such home directory") as caught:
        load_settings({name: "~nosuchuser/k2"})
    assert name in (caught.value.hint or "")
