"""The alerts and the dashboard ask for what k2 really exports, of jobs that are there."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import promql_parser as promql
import pytest

from k2cli.commands.metrics import RunMetrics
from k2cli.events import EVENTS
from k2cli.flow import Totals
from k2cli.health import _RUNBOOKS
from k2cli.pipelines.consume.policy import ConsumeTotals
from support.cluster import unexpected
from support.compose import DOCKER, command_of, own_services, services, yaml_of
from support.paths import REPOSITORY
from support.scraping import consumption_of_nothing

SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_count", "_sum"),
}
DASHBOARD: Final = json.loads((DOCKER / "grafana/dashboards/k2.json").read_text(encoding="utf-8"))
RULES: Final = [
    rule for group in yaml_of("prometheus/rules.yml")["groups"] for rule in group["rules"]
]
JOBS: Final = {
    each["job_name"]: each for each in yaml_of("prometheus/prometheus.yml")["scrape_configs"]
}
OF_PROMETHEUS: Final = {"up"}
LABELS: Final = {
    *("job", "instance", "topic", "partition", "event", "level", "le", "version"),
    *("cause", "kind", "server", "symbol"),
}
RUNBOOKS: Final = REPOSITORY / "docs" / "runbooks"


def _queries() -> Iterator[str]:
    """All that is asked of Prometheus, with Grafana's variables filled in."""
    yield from (rule["expr"] for rule in RULES)
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")


QUERIES: Final = list(_queries())


def selectors(query: str) -> list[Any]:
    """Return what a query selects series by; it is an error if Prometheus could not read it."""
    nodes: list[Any] = []
    promql.walk(promql.parse(query), nodes.append)
    return [node for node in nodes if isinstance(node, promql.VectorSelector)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all that k2 exports, of a stream and of a consumer."""
    stream, consumer = RunMetrics(unexpected), RunMetrics(unexpected)
    stream.watch(Totals())
    consumer.watch_consumption(consumption_of_nothing(tmp_path_factory.mktemp("consumption")))
    return {
        f"{metric.name}{suffix}"
        for run in (stream, consumer)
        for metric in run.registry.collect()
        for suffix in SUFFIXES[metric.type]
    }


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_asked_for_is_exported(query: str, exported: set[str]) -> None:
    names = {selector.name for selector in selectors(query)}
    assert names
    assert names <= exported | OF_PROMETHEUS


@pytest.mark.parametrize("query", QUERIES)
def test_labels_and_jobs_are_there(query: str) -> None:
    for selector in selectors(query):
        for matcher in selector.matchers.matchers:
            assert matcher.name in LABELS
            if matcher.name == "event":
                assert events_of(matcher) <= set(EVENTS), query
            if matcher.name == "job" and matcher.op == promql.MatchOp.Equal:
                assert matcher.value in JOBS


def events_of(matcher: Any) -> set[str]:
    """The events that a matcher names; a pattern may have several, and must be of plain names."""
    return set(matcher.value.split("|"))


def test_a_wrong_name_would_be_found(exported: set[str]) -> None:
    (selector,) = selectors("sum(rate(k2_row_total{job='k2-stream'}[5m])) > 0")
    assert selector.name not in exported
    assert len(selectors("a / b offset 5m")) == 2


@pytest.mark.parametrize("totals", [Totals, ConsumeTotals])
def test_every_sum_is_exported(totals: Callable[[], Any], exported: set[str]) -> None:
    names = {f"k2_{each.name}_total" for each in fields(totals())}
    assert names - exported == {"k2_duration_s_total"}


@pytest.mark.parametrize("job", JOBS)
def test_job_is_a_service_that_serves_metrics_on_that_port(job: str) -> None:
    (found,) = JOBS[job]["dns_sd_configs"]
    (name,) = found["names"]
    command = command_of(own_services()[name])
    address = command[command.index("--metrics") + 1]
    assert address == f"0.0.0.0:{found['port']}"
    assert f":{found['port']}/readyz" in " ".join(own_services()[name]["healthcheck"]["test"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = yaml_of("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = yaml_of("grafana/provisioning/dashboards/k2.yml")["providers"]
    grafana = services()["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert (DOCKER / "grafana/dashboards" / home.name).is_file()
    assert source["url"] == "http://prometheus:9090"
    used = {
        target["datasource"]["uid"] for each in DASHBOARD["panels"] for target in each["targets"]
    }
    assert used == {source["uid"]}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_runbook(rule: dict[str, Any]) -> None:
    page = (REPOSITORY / rule["annotations"]["runbook_url"]).read_text(encoding="utf-8")
    assert f"Alert `{rule['alert']}`." in page
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == ["## Symptom", "## Meaning", "## Check", "## Fix", "## Prevention"]


def test_every_runbook_is_of_an_alert_and_listed() -> None:
    pages = {page.name for page in RUNBOOKS.glob("*.md")} - {"README.md"}
    assert pages == {Path(rule["annotations"]["runbook_url"]).name for rule in RULES}
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    assert all(f"({page})" in index for page in pages)
    assert {f"{name}.md" for name in _RUNBOOKS.values()} <= pages
