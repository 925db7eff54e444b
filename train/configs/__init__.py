"""Experiments: one file per family, `get_config(arg)` returns the record of a run."""
