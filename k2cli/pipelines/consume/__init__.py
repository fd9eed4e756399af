"""Topics into their tables, by any number of processes, exactly once."""
