"""A fitted model asked about rows."""
