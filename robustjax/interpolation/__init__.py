"""Label interpolation on similarity graphs over deep features (WNLL)."""

from robustjax.interpolation.graph import Neighbors as Neighbors
from robustjax.interpolation.graph import gaussian as gaussian
from robustjax.interpolation.graph import nearest as nearest
from robustjax.interpolation.graph import quartic as quartic
from robustjax.interpolation.graph import square_distances as square_distances
from robustjax.interpolation.graph import weights as weights
from robustjax.interpolation.template import Similarity as Similarity
from robustjax.interpolation.template import Template as Template
from robustjax.interpolation.template import make_template as make_template
from robustjax.interpolation.wnll import Diagnostics as Diagnostics
from robustjax.interpolation.wnll import Solver as Solver
from robustjax.interpolation.wnll import interpolate as interpolate
from robustjax.interpolation.wnll import (
    interpolate_with_diagnostics as interpolate_with_diagnostics,
)
