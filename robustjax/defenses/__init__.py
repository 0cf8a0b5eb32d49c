"""Defenses as losses: `(params, model_state, key, batch) -> (loss, LossAux)`."""

from robustjax.defenses.adversarial import adversarial as adversarial
from robustjax.defenses.mart import mart as mart
from robustjax.defenses.standard import standard as standard
from robustjax.defenses.trades import trades as trades
from robustjax.defenses.weight_perturbation import awp as awp
from robustjax.defenses.wnll import wnll as wnll
