"""What Detector and Segmenter share: files, categories, preparation, export."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from dcn_jax.categories import Category, as_categories
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference import exported, loading
from dcn_jax.inference.predictor import Network, Predictor

_Kind = TypeVar("_Kind", bound="ImageNetwork")


class ImageNetwork:
    """A trained network, with what is needed to ask it about pictures.

    Args:
      network: What predicts.
      categories: What its labels mean, or their names.
      preprocessing: How images come onto its canvases.
    """

    # "detector" or "segmenter": a run leaves its network in KIND.safetensors.
    _kind: ClassVar[str]
    _first_label: ClassVar[int]

    def __init__(
        self,
        network: Network,
        categories: Sequence[Category | str],
        preprocessing: Preprocessing = Preprocessing(),
    ):
        self.categories = as_categories(categories, self._first_label)
        self._predictor = Predictor(network, preprocessing)

    @classmethod
    def load(
        cls: type[_Kind],
        path: str | os.PathLike,
        *,
        names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        coco_ids: bool = True,
        dtype: Any = None,
    ) -> _Kind:
        """Loads the network of a run, or of a file of weights.

        Args:
          path: The folder of a run of `train.main`; the detector.safetensors or
            segmenter.safetensors that it left there; or a detector of torchvision,
            mmdetection or detectron2, see `dcn_jax.weights.read_detector`.
          names: Of the categories, for files that do not have them.
          preprocessing: None takes that of the file, or for detectors of others that of
            the papers: a short side of 800.
          coco_ids: As in `dcn_jax.weights.read_detector`.
          dtype: Of the computation; None is the parameters'.

        Raises:
          OSError: It cannot be opened.
          ValueError: It holds no such network, does not say how images are prepared, or
            `names` has another length than it has classes; the message names the file.
        """
        return cls(
            *loading.load(
                path,
                cls._kind,
                first_label=cls._first_label,
                names=names,
                preprocessing=preprocessing,
                coco_ids=coco_ids,
                dtype=dtype,
            )
        )

    @property
    def network(self) -> Network:
        """What predicts."""
        return self._predictor.network

    @property
    def preprocessing(self) -> Preprocessing:
        """How images come onto the network's canvases."""
        return self._predictor.preprocessing

    def export(
        self, path: str | os.PathLike, *, platforms: Sequence[str] = ("cpu",)
    ) -> None:
        """Writes compiled programs and weights into one file, for `from_export`.

        There is a program for each canvas. Who runs them needs no definition of the
        network, but this package, whose kernels they call.

        Args:
          path: The file.
          platforms: What the programs run on: "cpu", "cuda", "tpu", ... One for which
            no kernels are built here gets the plain forms, with a warning.

        Raises:
          OSError: The file cannot be written.
          ValueError: A platform is not known, or the network comes from an export
            itself.
        """
        exported.write_export(
            path,
            self._kind,
            self.network,
            self.categories,
            self.preprocessing,
            platforms,
        )

    @classmethod
    def from_export(cls: type[_Kind], path: str | os.PathLike) -> _Kind:
        """Loads what `export` wrote.

        Its programs are run as they are: load only files whose origin is trusted.

        Raises:
          OSError: The file cannot be opened.
          ValueError: It is damaged, or an export of another kind.
        """
        return cls(*exported.read_export(path, cls._kind))
