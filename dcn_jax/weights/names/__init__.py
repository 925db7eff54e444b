"""What others call the parts of our networks: a table for each of them."""

from dcn_jax.weights.names.detectron2 import DETECTRON2 as DETECTRON2
from dcn_jax.weights.names.mmdetection import MMDETECTION as MMDETECTION
from dcn_jax.weights.names.resnet import RESNET as RESNET
from dcn_jax.weights.names.table import Place as Place
from dcn_jax.weights.names.table import Table as Table
from dcn_jax.weights.names.torchvision import TORCHVISION as TORCHVISION
