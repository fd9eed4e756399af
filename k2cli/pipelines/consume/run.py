"""State shared by the parts of one run."""

from collections.abc import Callable
from dataclasses import dataclass

from k2cli.events import Observer
from k2cli.pipelines.consume.patience import Patience
from k2cli.pipelines.consume.policy import ConsumePolicy, ConsumeTotals
from k2cli.pipelines.consume.progress import Progress
from k2cli.pipelines.consume.reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: its reader, policy and progress."""

    reader: Reader
    policy: ConsumePolicy
    progress: Progress
    totals: ConsumeTotals
    patience: Patience
    is_stopping: Callable[[], bool]
    observe: Observer
