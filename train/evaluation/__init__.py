"""Metrics: objects with update, merge over processes, compute; see `train.task`."""
