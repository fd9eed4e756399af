"""Request the identities of topics from the brokers, and wait for them."""

from collections.abc import Iterable, Mapping
from typing import Final

from k2cli.errors import Unavailable
from k2cli.ingestion.kafka.topics import TopicIdentity
from k2cli.pipelines.consume.run import Run

_POLL_S: Final = 0.2
_LAST_ANSWER_S: Final = 1.0  # how long a stopping run waits for the brokers' answer


class Identities:
    """Requests the ids of topics from the brokers until they answer. Any thread."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def find(self, topics: Iterable[str]) -> Mapping[str, TopicIdentity | None]:
        """Return the current identities of these topics; None if a topic does not exist.

        Raises:
            Unavailable: the brokers do not answer, and the run must stop.
        """
        names = list(topics)
        return self._run.patience.call("kafka_unavailable", lambda: self._ask(names))

    def ids(self, topics: Iterable[str]) -> set[tuple[str, str]]:
        """Return the names and ids of the existing topics among these.

        Raises:
            Unavailable: the brokers do not answer, and the run must stop.
        """
        return {(topic, found.id) for topic, found in self.find(topics).items() if found}

    def _ask(self, topics: Iterable[str]) -> Mapping[str, TopicIdentity | None]:
        answer = self._run.reader.ask_identities(topics)
        while not answer.wait(_POLL_S):
            if self._run.is_stopping() and not answer.wait(_LAST_ANSWER_S):
                raise Unavailable("the brokers do not answer")
        return answer.identities()
