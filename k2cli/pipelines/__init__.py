"""What moves records: streams, loads, topics and exports, and the sinks they end in."""
