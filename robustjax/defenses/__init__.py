"""Defenses as losses: `(params, model_state, key, batch) -> (loss, LossAux)`."""

from robustjax.defenses.adversarial import adversarial as adversarial
from robustjax.defenses.critics import critics as critics
from robustjax.defenses.critics import maximisation as maximisation
from robustjax.defenses.critics import separation as separation
from robustjax.defenses.critics import separation_released as separation_released
from robustjax.defenses.mart import mart as mart
from robustjax.defenses.namid import namid as namid
from robustjax.defenses.pairing import at_alp as at_alp
from robustjax.defenses.pairing import teacher_attention as teacher_attention
from robustjax.defenses.squeezing import clean_logit_pairing as clean_logit_pairing
from robustjax.defenses.squeezing import logit_squeezing as logit_squeezing
from robustjax.defenses.standard import standard as standard
from robustjax.defenses.trades import trades as trades
from robustjax.defenses.weight_perturbation import awp as awp
from robustjax.defenses.wmim import wmim as wmim
from robustjax.defenses.wmim import wmim_critic as wmim_critic
from robustjax.defenses.wnll import wnll as wnll
