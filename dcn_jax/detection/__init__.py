"""Stages of detectors: proposals, heads, mimicking, and what wires them."""
