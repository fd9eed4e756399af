"""Which topics have the names that are read: asked of the brokers, and waited for."""

from collections.abc import Iterable, Mapping
from typing import Final

from k2cli.errors import Unavailable
from k2cli.ingestion.kafka.topics import TopicIdentity
from k2cli.pipelines.consume.run import Run

_POLL_S: Final = 0.2
_LAST_ANSWER_S: Final = 1.0  # how long the end of a run waits for the brokers' answer


class Identities:
    """Asks the brokers for the ids of topics, as long as it takes. Any thread."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def find(self, topics: Iterable[str]) -> Mapping[str, TopicIdentity | None]:
        """Return which topics have these names now; None: the topic does not exist.

        Raises:
            Unavailable: the brokers do not answer, and the run is to end.
        """
        names = list(topics)
        return self._run.patience.call("kafka_unavailable", lambda: self._ask(names))

    def ids(self, topics: Iterable[str]) -> set[tuple[str, str]]:
        """Return the names and ids of those of these topics that exist now.

        Raises:
            Unavailable: the brokers do not answer, and the run is to end.
        """
        return {(topic, found.id) for topic, found in self.find(topics).items() if found}

    def _ask(self, topics: Iterable[str]) -> Mapping[str, TopicIdentity | None]:
        answer = self._run.reader.ask_identities(topics)
        while not answer.wait(_POLL_S):
            if self._run.is_stopping() and not answer.wait(_LAST_ANSWER_S):
                raise Unavailable("the brokers do not answer")
        return answer.identities()
