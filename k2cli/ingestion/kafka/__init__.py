"""Kafka with a Schema Registry: what is produced to topics, and what is read from them."""
