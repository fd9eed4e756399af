"""What tests share: data rows, memory readers, ways to run k2, waiting, generated pages."""
