"""Mutual information: bounds on it from the scores of critics."""

from robustjax.information.bank import estimates_against as estimates_against
from robustjax.information.bank import probe as probe
from robustjax.information.bounds import Bound as Bound
from robustjax.information.bounds import climbed as climbed
from robustjax.information.bounds import donsker_varadhan as donsker_varadhan
from robustjax.information.bounds import dv as dv
from robustjax.information.bounds import estimates as estimates
from robustjax.information.bounds import estimates_by_place as estimates_by_place
from robustjax.information.bounds import estimates_of_scores as estimates_of_scores
from robustjax.information.bounds import f_divergence as f_divergence
from robustjax.information.bounds import info_nce as info_nce
from robustjax.information.bounds import info_nce_released as info_nce_released
from robustjax.information.bounds import mine as mine
from robustjax.information.bounds import scores as scores
from robustjax.information.bounds import smile as smile
from robustjax.information.estimator import Estimate as Estimate
from robustjax.information.estimator import (
    estimate_mutual_information as estimate_mutual_information,
)
