"""Explains what a trained network sees of an image."""
