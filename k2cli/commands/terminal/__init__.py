"""What people see: output, tables, live views, log lines, charts; and the signals they send."""
