"""What stands at the top of the package."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import dcn_jax
from tests.support.launch import ROOT, environment


def test_every_name_is_there():
    assert dcn_jax.__version__ == importlib.metadata.version("dcn-jax")
    for name in dcn_jax.__all__:
        value = getattr(dcn_jax, name)
        assert name in dir(dcn_jax)
        if name != "__version__":
            home = importlib.import_module(value.__module__)
            assert getattr(home, name) is value
    unknown = "Detectors"
    with pytest.raises(AttributeError, match="'dcn_jax' has no attribute 'Detectors'"):
        getattr(dcn_jax, unknown)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(dcn_jax.__file__).read_text())
    imported = {
        (node.module, alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dcn_jax.")
        for alias in node.names
    }
    homes = dcn_jax._NAMES.items()
    assert imported == {(module, name) for module, names in homes for name in names}
    for package in ("dcn_jax", "xla_ops"):
        module = importlib.import_module(package)
        assert Path(str(module.__file__)).with_name("py.typed").exists()


_WITHOUT_OPENCV = """
import sys
sys.modules["cv2"] = None
import dcn_jax
assert "flax" not in sys.modules
dcn_jax.DeformConv, dcn_jax.faster_rcnn
import dcn_jax.weights
from dcn_jax import *
from dcn_jax.images.files import read_image
try:
    read_image(sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_only_pictures_need_opencv(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((2, 2, 3), np.uint8))
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_OPENCV, str(path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'dcn-jax[detect]'" in run.stdout
