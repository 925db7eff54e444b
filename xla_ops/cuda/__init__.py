"""Operators whose CUDA form is more than one custom call."""
