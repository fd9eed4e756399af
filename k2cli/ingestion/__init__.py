"""Sources of records: exchanges, files and Kafka."""
