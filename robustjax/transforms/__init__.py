"""Input transformations: what is done to an image before it is classified."""

from robustjax.transforms.chain import chain as chain
from robustjax.transforms.minimise import Minimised as Minimised
from robustjax.transforms.minimise import (
    minimise_total_variation as minimise_total_variation,
)
from robustjax.transforms.total_variation import random_mask as random_mask
from robustjax.transforms.total_variation import total_variation as total_variation
