"""Tests: a folder for each package, what several share (`support`), golden vectors."""
