"""A page on which one points at a place and sees what the network sees there."""

from train.explain.viewer.detected import Detected as Detected
from train.explain.viewer.page import viewer_page as viewer_page
from train.explain.viewer.page import write_viewer as write_viewer
