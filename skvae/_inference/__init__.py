"""Inference: apply a fitted model to rows."""
