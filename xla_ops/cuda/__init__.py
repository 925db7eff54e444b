"""Operators whose CUDA form is not just the custom call of the CPU."""
