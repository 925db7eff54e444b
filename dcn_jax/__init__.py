"""Deformable ConvNets for Flax: layers, detectors and their parts."""
