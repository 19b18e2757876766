"""Ablations: the same training with one thing changed at a time, over several seeds, and what that changes."""
