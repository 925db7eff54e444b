"""Data sets as tfds builders, and the loader that turns them into batches."""

from train.data.loader import eval_loader, train_loader
from train.data.source import Example, Source, make_source

__all__ = ["Example", "Source", "eval_loader", "make_source", "train_loader"]
