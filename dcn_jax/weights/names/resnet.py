"""Names of a ResNet's modules."""

from collections.abc import Iterator

from dcn_jax.weights.names.table import Row, Table


def torchvision_resnet(ours: str, theirs: str) -> Iterator[Row]:
    """Rows of torchvision's ResNet, whose names mmdetection has too.

    Deformable convolutions are mmdetection's.

    Args:
      ours: Path of the backbone, "" or with a dot at its end.
      theirs: Its name, likewise.
    """
    block = "layer{l}.{b}"
    for our_name, their_name, kind in (
        ("conv1", "conv1", "stem"),
        ("norm1", "bn1", "norm"),
        (f"{block}.conv{{k}}", f"{block}.conv{{k}}", "conv"),
        (f"{block}.norm{{k}}", f"{block}.bn{{k}}", "norm"),
        (f"{block}.conv2.offset_conv", f"{block}.conv2.conv_offset", "conv"),
        (f"{block}.downsample_conv", f"{block}.downsample.0", "conv"),
        (f"{block}.downsample_norm", f"{block}.downsample.1", "norm"),
    ):
        yield Row(ours + our_name, theirs + their_name, kind)


# A ResNet alone, as for classification.
RESNET = Table(torchvision_resnet("", ""))
