"""Devices, tensors, blocks of rows and operations: what knows nothing of tables or models."""
