"""The terminal: output, tables, live views, log lines, charts, and signals."""
