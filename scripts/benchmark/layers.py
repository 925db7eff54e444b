"""Sizes of the paper's ResNet-50 at an image of 800x1216, for whatever measures it."""

CANVAS = (800, 1216)
# Channels, height and width of the 3x3 layers that are deformable.
CONV3, CONV4, CONV5 = (128, 100, 152), (256, 50, 76), (512, 25, 38)
SHAPES = (CONV3, CONV4, CONV5)
# How many of each there are.
COUNTS = (4, 6, 3)
