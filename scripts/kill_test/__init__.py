"""Kills runs and compares where they end; `python -m scripts.kill_test` says more."""
