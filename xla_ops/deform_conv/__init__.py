"""Deformable convolution, and where it samples."""
