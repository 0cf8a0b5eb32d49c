"""Input transformations: what is done to an image before it is classified."""

from robustjax.transforms._directions import rms_normalised as rms_normalised
from robustjax.transforms.chain import chain as chain
from robustjax.transforms.minimise import Minimised as Minimised
from robustjax.transforms.minimise import (
    minimise_total_variation as minimise_total_variation,
)
from robustjax.transforms.nip import NIPOptions as NIPOptions
from robustjax.transforms.nip import NIPState as NIPState
from robustjax.transforms.nip import moved_towards as moved_towards
from robustjax.transforms.nip import nip as nip
from robustjax.transforms.nip import own_direction as own_direction
from robustjax.transforms.storage import digest as digest
from robustjax.transforms.storage import load_state as load_state
from robustjax.transforms.storage import save_state as save_state
from robustjax.transforms.test_time import anti_adversary as anti_adversary
from robustjax.transforms.test_time import hedge as hedge
from robustjax.transforms.test_time import nearest_class_mean as nearest_class_mean
from robustjax.transforms.test_time import nearest_neighbor as nearest_neighbor
from robustjax.transforms.test_time import noise_voting as noise_voting
from robustjax.transforms.total_variation import random_mask as random_mask
from robustjax.transforms.total_variation import total_variation as total_variation
