"""Metrics as Prometheus reads them."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from k2cli.ingestion.kafka.deadletters import DeadLetterFile
from k2cli.pipelines.consume.loop import Consumption
from k2cli.pipelines.consume.policy import ConsumePolicy, Outlets
from k2cli.pipelines.printing import NdjsonPrinter, StdoutTables
from k2cli.rejects import RejectLog
from support.cluster import unexpected
from support.waiting import PATIENCE_S

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]


def scrape(url: str) -> Samples:
    """Ask for metrics once."""
    with urlopen(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped_until(url: str, is_there: Callable[[Samples], bool]) -> Samples:
    """Ask again and again, until the samples are as they are to become."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        samples = scrape(url)
        if is_there(samples):
            return samples
        assert time.monotonic() < deadline, samples
        time.sleep(0.05)


def consumption_of_nothing(folder: Path) -> Consumption:
    """Make a consumption that has no topics, to ask for its metrics."""
    rejects = RejectLog(folder / "rejects.ndjson", run="")
    return Consumption(
        feeds=[],
        outlets=Outlets(
            tables=StdoutTables(NdjsonPrinter(io.BytesIO())),
            letters=DeadLetterFile(rejects),
            rejects=rejects,
        ),
        policy=ConsumePolicy(batch_rows=1, commit_interval_s=1, timeout_s=1),
        observe=unexpected,
    )
