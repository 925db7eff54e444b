"""Pure functions on boxes: coding, anchors, matching, sampling, levels of a pyramid."""

from dcn_jax.boxes.anchors import cell_anchors as cell_anchors
from dcn_jax.boxes.anchors import grid_anchors as grid_anchors
from dcn_jax.boxes.coding import BoxCode as BoxCode
from dcn_jax.boxes.coding import decode_boxes as decode_boxes
from dcn_jax.boxes.coding import encode_boxes as encode_boxes
from dcn_jax.boxes.geometry import box_area as box_area
from dcn_jax.boxes.geometry import box_iou as box_iou
from dcn_jax.boxes.geometry import clip_boxes as clip_boxes
from dcn_jax.boxes.geometry import generalized_box_iou as generalized_box_iou
from dcn_jax.boxes.geometry import large_enough as large_enough
from dcn_jax.boxes.levels import level_of_square as level_of_square
from dcn_jax.boxes.levels import levels_of_rois as levels_of_rois
from dcn_jax.boxes.matching import Matches as Matches
from dcn_jax.boxes.matching import match_boxes as match_boxes
from dcn_jax.boxes.sampling import Samples as Samples
from dcn_jax.boxes.sampling import gather_rows as gather_rows
from dcn_jax.boxes.sampling import sample_balanced as sample_balanced
from dcn_jax.boxes.sampling import top_k as top_k
