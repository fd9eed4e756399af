"""The questions, asked with DuckDB over the data files that a plan left over."""
