"""Rows in, rows out: containers, columns, units and weights."""
