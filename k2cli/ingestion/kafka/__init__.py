"""Kafka with a Schema Registry: produce to topics and read from them."""
