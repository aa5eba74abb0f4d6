"""Train models: rows and parameters go in, and a trained state comes out."""
