"""From rows and parameters to a trained state."""
