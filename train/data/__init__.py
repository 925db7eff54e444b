"""Data sets as tfds builders, and the loader that turns them into batches."""
