"""Label interpolation on similarity graphs over deep features (WNLL)."""

from robustjax.interpolation.classifier import among as among
from robustjax.interpolation.classifier import draw_templates as draw_templates
from robustjax.interpolation.classifier import embed as embed
from robustjax.interpolation.classifier import (
    features_and_logits as features_and_logits,
)
from robustjax.interpolation.classifier import (
    interpolated_logits_fn as interpolated_logits_fn,
)
from robustjax.interpolation.graph import Neighbors as Neighbors
from robustjax.interpolation.graph import gaussian as gaussian
from robustjax.interpolation.graph import nearest as nearest
from robustjax.interpolation.graph import quartic as quartic
from robustjax.interpolation.graph import square_distances as square_distances
from robustjax.interpolation.graph import weights as weights
from robustjax.interpolation.heads import kernel_regression as kernel_regression
from robustjax.interpolation.heads import nearest_neighbors as nearest_neighbors
from robustjax.interpolation.heads import stack_templates as stack_templates
from robustjax.interpolation.heads import wnll as wnll
from robustjax.interpolation.heads import wnll_released as wnll_released
from robustjax.interpolation.joint import Gradient as Gradient
from robustjax.interpolation.joint import Joint as Joint
from robustjax.interpolation.joint import perturbing_templates as perturbing_templates
from robustjax.interpolation.single import interpolate_singly as interpolate_singly
from robustjax.interpolation.template import Similarity as Similarity
from robustjax.interpolation.template import Template as Template
from robustjax.interpolation.template import make_template as make_template
from robustjax.interpolation.wnll import Diagnostics as Diagnostics
from robustjax.interpolation.wnll import Solver as Solver
from robustjax.interpolation.wnll import TemplateWeight as TemplateWeight
from robustjax.interpolation.wnll import interpolate as interpolate
from robustjax.interpolation.wnll import (
    interpolate_with_diagnostics as interpolate_with_diagnostics,
)
from robustjax.interpolation.wnll import log_scores as log_scores
