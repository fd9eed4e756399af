"""Real servers for the tests: Kafka, a schema registry, S3 with an Iceberg REST catalog.

Each is a process of this machine, started when the first test asks for it. What cannot be had
here raises ServiceMissing, which the fixtures turn into a skip.
"""


class ServiceMissing(Exception):
    """This machine lacks what a server needs: Java, Maven, its packages, a program."""
