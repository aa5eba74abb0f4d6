"""Devices, tensors, blocks of rows and operations, which do not depend on tables or models."""
