"""Backbones: images in, a dict of maps ("c2" to "c5") out."""

from dcn_jax.backbones.backbone import Backbone as Backbone
from dcn_jax.backbones.resnet import ResNet as ResNet
from dcn_jax.backbones.resnet import resnet50 as resnet50
from dcn_jax.backbones.resnet import resnet101 as resnet101
