"""Images and labels in, batches out.

Host side (NumPy): `load` -> `shuffled_batches`, `evaluation_batches`. Device side
(JAX): `as_float` and the augmentations.
"""

from robustjax.data.augment import Augmentation as Augmentation
from robustjax.data.augment import as_float as as_float
from robustjax.data.augment import chain as chain
from robustjax.data.augment import flip as flip
from robustjax.data.augment import random_crop as random_crop
from robustjax.data.augment import random_resized_crop as random_resized_crop
from robustjax.data.batches import EvalBatch as EvalBatch
from robustjax.data.batches import evaluation_batches as evaluation_batches
from robustjax.data.batches import shuffled_batches as shuffled_batches
from robustjax.data.dataset import Dataset as Dataset
from robustjax.data.dataset import Splits as Splits
from robustjax.data.dataset import stratified_subset as stratified_subset
from robustjax.data.derived import joined as joined
from robustjax.data.derived import mapped as mapped
from robustjax.data.sources import centred as centred
from robustjax.data.sources import load as load
from robustjax.data.template_batches import template_batches as template_batches
