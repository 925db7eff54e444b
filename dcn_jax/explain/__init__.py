"""What a network sees: reads what layers record, and is imported by none."""

from dcn_jax.explain.atlas import Atlas as Atlas
from dcn_jax.explain.atlas import PointSet as PointSet
from dcn_jax.explain.atlas import node_atlas as node_atlas
from dcn_jax.explain.bins import BinLocations as BinLocations
from dcn_jax.explain.bins import bin_locations as bin_locations
from dcn_jax.explain.convolutions import Convolution as Convolution
from dcn_jax.explain.convolutions import convolutions as convolutions
from dcn_jax.explain.convolutions import map_stride as map_stride
from dcn_jax.explain.effective_dilation import GROUPS as GROUPS
from dcn_jax.explain.effective_dilation import SIZE_BOUNDS as SIZE_BOUNDS
from dcn_jax.explain.effective_dilation import effective_dilation as effective_dilation
from dcn_jax.explain.health import offset_health as offset_health
from dcn_jax.explain.moments import Moments as Moments
from dcn_jax.explain.moments import merge as merge
from dcn_jax.explain.multiply_adds import multiply_adds as multiply_adds
from dcn_jax.explain.offset_fields import OffsetField as OffsetField
from dcn_jax.explain.offset_fields import first_in_pixels as first_in_pixels
from dcn_jax.explain.offset_fields import offset_fields as offset_fields
from dcn_jax.explain.receptive_field import ReceptiveField as ReceptiveField
from dcn_jax.explain.receptive_field import area_side as area_side
from dcn_jax.explain.receptive_field import (
    effective_receptive_field as effective_receptive_field,
)
from dcn_jax.explain.receptive_field import square_side as square_side
from dcn_jax.explain.saliency import SaliencyRegion as SaliencyRegion
from dcn_jax.explain.saliency import saliency_region as saliency_region
from dcn_jax.explain.sampling import SamplingLocations as SamplingLocations
from dcn_jax.explain.sampling import distinct_points as distinct_points
from dcn_jax.explain.sampling import sampling_locations as sampling_locations
from dcn_jax.explain.superpixels import grid_superpixels as grid_superpixels
