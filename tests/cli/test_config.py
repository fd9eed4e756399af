"""`k2 config`: what is in force and why, and the files that it writes."""

import json
import re
import stat
import tomllib
from pathlib import Path

import pytest

from k2cli.config import Settings, load_settings
from support.paths import REPOSITORY
from support.running import Run, k2_at

COMPOSE = REPOSITORY / "docker" / "compose.yml"
NAMES = ["S3_ACCESS_KEY", "S3_SECRET_KEY", "GRAFANA_ADMIN_PASSWORD", "SYMBOLS"]


def loaded(home: Path) -> Settings:
    return load_settings({"K2_HOME": str(home)})


def values(settings: Settings) -> tuple[object, ...]:
    return (settings.table, settings.stream, settings.query)


@pytest.fixture
def secret_file(home: Path) -> Path:
    home.mkdir()
    file = home / "k2.toml"
    file.write_text(
        """
        [catalog]
        uri = "postgresql://me:hush@db/k2"
        "s3.secret-access-key" = "hush"
        [profile.prod.kafka]
        "sasl.password" = "hush"
        """
    )
    return file


def test_show_is_toml_that_loads(home: Path) -> None:
    shown = k2_at(home)("config", "show").stdout
    document = tomllib.loads(shown)
    assert document["stream"]["flush_rows"] == 100_000
    assert f"# home: {home}\n# file: none\n# profile: none\n" in shown


def test_show_says_where_each_value_comes_from(home: Path, secret_file: Path, run: Run) -> None:
    env = {"K2_QUERY_THREADS": "3", "K2_PROFILE": "prod"}
    text = run(["config", "show", "--origin"], env=env).stdout
    assert 'keep_for = "0s"  # default' in text
    assert "threads = 3  # variable K2_QUERY_THREADS" in text
    assert f'"sasl.password" = "********"  # {secret_file} [profile.prod]' in text
    assert f'uri = "postgresql://me:********@db/k2"  # {secret_file}\n' in text
    assert "# profile: prod  # variable K2_PROFILE" in text
    assert "hush" not in text
    assert tomllib.loads(text)["query"]["threads"] == 3
    found = json.loads(run(["config", "show", "--origin", "-f", "json"], env=env).stdout)
    assert found["home"] == {"value": str(home), "origin": "variable K2_HOME"}
    assert found["query"]["threads"] == {"value": 3, "origin": "variable K2_QUERY_THREADS"}
    assert found["stream"]["flush_rows"] == {"value": 100_000, "origin": "default"}
    assert found["kafka"]["sasl.password"] == {
        "value": "********",
        "origin": f"{secret_file} [profile.prod]",
    }


@pytest.mark.parametrize("args", [[], ["--origin"], ["-f", "json"], ["--origin", "-f", "json"]])
def test_api_key_is_never_shown(args: list[str], home: Path, run: Run) -> None:
    key = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zv"
    result = run(["config", "show", *args], env={"K2_BINANCE_API_KEY": key})
    assert "api_key" in result.stdout
    assert "********" in result.stdout
    assert key not in result.stdout + result.stderr
    home.mkdir(exist_ok=True)
    (home / "k2.toml").write_text(f'[binance]\napi_key = "{key}"\n')
    result = run(["config", "show", *args])
    assert "********" in result.stdout
    assert key not in result.stdout + result.stderr


def test_show_as_json_is_plain_without_origins(home: Path) -> None:
    found = json.loads(k2_at(home)("config", "show", "-f", "json").stdout)
    assert (found["home"], found["file"], found["profile"]) == (str(home), None, None)
    assert found["table"] == {"keep_snapshots": 20, "keep_for": "0s", "fsync": True}


def test_the_profile_option_wins_over_its_variable(home: Path, secret_file: Path, run: Run) -> None:
    secret_file.write_text("[profile.a.query]\nthreads = 1\n[profile.b.query]\nthreads = 2\n")
    shown = run(["--profile", "b", "config", "show"], env={"K2_PROFILE": "a"}).stdout
    assert "threads = 2" in shown
    # What one run chose does not stick to the next.
    within = k2_at(home)
    assert "threads = 1" in within("--profile", "a", "config", "show").stdout
    assert "threads" not in within("config", "show").stdout


@pytest.mark.parametrize(
    ("args", "code", "message", "hint"),
    [
        (["--profile", "prd", "config", "show"], 3, "unknown profile prd", "it has prod"),
        (["query", "trades", "--profile", "prod"], 2, "precede the command", "k2 --profile NAME"),
        (["config", "show", "--profile=prod"], 2, "precede the command", "k2 --profile NAME"),
        (["config", "init"], 2, "k2.toml already exists", "use --force to replace it"),
        (["config", "init", "--cluster", "--docker"], 2, "different files", "run it once each"),
        (
            ["config", "init", "--docker", "-o", "-"],
            2,
            "name of a file",
            "cannot be written to stdout",
        ),
        (["config", "init", "-o", "/"], 2, "/ is a directory", "name of a file"),
        (["config", "init", "-o", "/dev/null/k2.toml"], 2, "cannot write", "another"),
        (["config", "init", "--home", "/proc/x"], 3, "cannot create the directory", "--home"),
    ],
)
@pytest.mark.usefixtures("secret_file")
def test_failures_say_what_to_do(
    home: Path, args: list[str], code: int, message: str, hint: str
) -> None:
    result = k2_at(home)(*args, code=code)
    assert result.stdout == ""
    assert message in result.stderr
    assert hint in result.stderr.partition("hint: ")[2]


def test_path_and_init_do_not_mind_a_broken_file(home: Path, secret_file: Path) -> None:
    secret_file.write_text("[table\n")
    within = k2_at(home)
    assert "start over with k2 config init --force" in within("config", "show", code=3).stderr
    assert within("config", "path").stdout == f"{secret_file}\n"
    within("config", "init", "--force")
    assert values(loaded(home)) == values(Settings(home=home))


def test_init_writes_where_the_config_variable_points(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "sub" / "other.toml"
    env = {"K2_CONFIG": str(file)}
    assert run(["config", "show"], env=env).exit_code == 3
    assert run(["config", "init"], env=env).stderr == f"wrote {file}\n"
    assert f"# file: {file}" in run(["config", "show"], env=env).stdout


@pytest.mark.parametrize("mode", [(), ("--cluster",)])
def test_init_writes_a_file_that_loads_with_and_without_its_comments(
    home: Path, mode: tuple[str, ...]
) -> None:
    result = k2_at(home)("config", "init", *mode)
    file = home / "k2.toml"
    assert (result.stdout, result.stderr) == ("", f"wrote {file}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in home.iterdir()] == ["k2.toml"]
    plain = loaded(home)
    assert values(plain) == values(Settings(home=home))
    cluster = {"catalog", "kafka", "schema_registry"} if mode else set()
    assert {name for name in ("catalog", "kafka", "schema_registry") if getattr(plain, name)} == (
        cluster
    )
    assert not any("secret" in key or "password" in key for key in (*plain.catalog, *plain.kafka))
    file.write_text(re.sub(r"(?m)^#(?! |$)", "", file.read_text()))
    full = load_settings({"K2_HOME": str(home), "K2_PROFILE": "prod"})
    assert values(full)[:2] == values(plain)[:2]
    assert full.query.threads == 2
    assert full.kafka["bootstrap.servers"] == "kafka.example.com:9092"
    assert set(plain.catalog) < set(full.catalog)
    assert full.schema_registry.keys() == {"url", "basic.auth.user.info"}


def variables(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_docker_secrets_are_new_each_time_and_never_shown(tmp_path: Path, home: Path) -> None:
    files = [tmp_path / name for name in ("a.env", "b.env")]
    results = [k2_at(home)("config", "init", "--docker", "-o", file) for file in files]
    first, second = map(variables, files)
    assert list(first) == list(second) == NAMES
    assert first["SYMBOLS"] == "BTCUSDT,ETHUSDT"
    for name in NAMES[:-1]:
        assert first[name] != second[name]
        assert re.fullmatch(r"[\w-]{20,}", first[name])  # nothing that a shell or a URL minds
        assert first[name] not in results[0].output
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    before = files[0].read_text()
    refused = k2_at(home)("config", "init", "--docker", "-o", files[0], code=2)
    assert "hint: use --force to replace it" in refused.stderr
    assert files[0].read_text() == before
    k2_at(home)("config", "init", "--docker", "--force", "-o", files[0])
    assert files[0].read_text() != before


def test_docker_file_stands_beside_the_compose_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    k2_at(home)("config", "init", "--docker")
    assert variables(tmp_path / ".env").keys() == set(NAMES)
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "compose.yml").touch()
    result = k2_at(home)("config", "init", "--docker")
    assert result.stderr == f"wrote {Path('docker') / '.env'}\n"
    assert variables(tmp_path / "docker" / ".env").keys() == set(NAMES)


@pytest.mark.skipif(not COMPOSE.exists(), reason="no docker/compose.yml")
def test_docker_file_has_what_the_compose_file_needs(tmp_path: Path, home: Path) -> None:
    k2_at(home)("config", "init", "--docker", "-o", tmp_path / ".env")
    needed = re.findall(r"(?<!\$)\$\{(\w+)(?::?\?[^}]*)?\}", COMPOSE.read_text())
    assert needed
    assert set(needed) <= variables(tmp_path / ".env").keys()
