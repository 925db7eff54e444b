"""Fields of a configuration of segmentation, beside those of every run.

The sections of `model` are explained by the constructors that they are arguments of.
"""

from typing import Any

from dcn_jax.backbones import ResNet
from dcn_jax.necks import DilatedConv5
from dcn_jax.trunk import Trunk
from train.config_dict import ConfigDict
from train.configs import _base, _trunk
from train.rules import OneOf, Rule, check_config
from train.sections import arguments_of

# Sections of `model` -> what is made of them, for every network of segmentation among
# dcn_jax.networks.NETWORKS.
_CONSTRUCTORS: dict[str, dict[str, Any]] = {
    "deeplab": {"backbone": ResNet, "trunk": Trunk, "neck": DilatedConv5},
}
NETWORKS = tuple(_CONSTRUCTORS)


def constructors(network: str) -> dict[str, Any]:
    """Returns section of `model` -> what is made of it, for one of NETWORKS."""
    return dict(_CONSTRUCTORS[network])


def get_config(network: str = "deeplab") -> ConfigDict:
    """Returns the defaults: ResNet-101 with DCNv1.

    Args:
      network: One of NETWORKS.
    """
    config = _base.get_config()
    config.task = "segmentation"
    # The network: one of segmentation among dcn_jax.networks.NETWORKS.
    config.network = network
    config.model = model = ConfigDict()
    model.backbone = arguments_of(
        ResNet,
        depths=(3, 4, 23, 3),
        deform_blocks=(0, 0, 0, -1),
        modulated=False,
        output_stride=16,
    )
    model.trunk = arguments_of(Trunk)
    model.neck = arguments_of(DilatedConv5, features=1024)
    # What a neck gives to proposals, nobody reads.
    del model.neck["rpn_on_conv5"]
    return config


# What the fields may hold, where neither the type of the default nor the constructor
# says it.
RULES: dict[str, Rule] = {
    **_base.RULES,
    **_trunk.RULES,
    "network": OneOf(NETWORKS),
}


def check(config: ConfigDict) -> None:
    """Refuses a configuration with unknown, missing or wrong fields.

    Raises:
      ValueError: One line that names the fields at fault.
    """
    network = config.get("network")
    if not isinstance(network, str) or network not in NETWORKS:
        network = NETWORKS[0]
    check_config(config, get_config(network), RULES)
