"""Read CSV files into batches: layouts describe them, the source reads them."""
