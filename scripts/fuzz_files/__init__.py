"""Fuzzes the readers of files that come from elsewhere; see `__main__`."""
