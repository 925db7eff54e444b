"""How a run's images come onto their canvases where it predicts and evaluates."""

from dcn_jax.images.preprocessing import Preprocessing
from train.config_dict import ConfigDict
from train.run_config import tuples_of


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """Returns what the section `data` of a configuration says.

    Raises:
      ValueError: A field is out of its range.
    """
    return Preprocessing(
        canvases=tuples_of([list(canvas) for canvas in data.canvases]),
        short_side=data.eval_short_side,
        max_side=data.max_side,
        max_pixels=data.max_pixels,
    )
