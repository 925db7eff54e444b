"""Pooling of regions of interest (RoIs), on one feature map or a pyramid."""
