"""Deformable convolution on CUDA: kernels, and what XLA does between them."""
