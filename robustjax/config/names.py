"""Every name that a config may use, and what it stands for."""

from robustjax import (
    attacks,
    data,
    defenses,
    influence,
    information,
    interpolation,
    models,
    objectives,
    threats,
    training,
    transforms,
)
from robustjax.config import (
    at_alp_suites,
    full_suite,
    namid_suites,
    nip_suites,
    suites,
)
from robustjax.types import Objective

THREATS = {"linf": threats.linf, "l2": threats.l2, "l1": threats.l1}
OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": objectives.cross_entropy,
    "margin": objectives.margin,
    "dlr": objectives.dlr,
    "kl": objectives.kl,
}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": attacks.bim,
    "pgd": attacks.pgd,
    "adam_pgd": attacks.adam_pgd,
    "apgd": attacks.apgd,
    "apgd_targeted": attacks.apgd_targeted,
    "mi_fgsm": attacks.mi_fgsm,
    "ni_fgsm": attacks.ni_fgsm,
    "si_ni_fgsm": attacks.si_ni_fgsm,
    "vmi_fgsm": attacks.vmi_fgsm,
    "di_fgsm": attacks.di_fgsm,
    "ti_dim": attacks.ti_dim,
    "fab": attacks.fab,
    "fab_targeted": attacks.fab_targeted,
    "carlini_wagner": attacks.carlini_wagner,
    "carlini_wagner_linf": attacks.carlini_wagner_linf,
    "carlini_wagner_fixed": attacks.carlini_wagner_fixed,
    "deepfool": attacks.deepfool,
    "ddn": attacks.ddn,
    "fmn": attacks.fmn,
    "ead": attacks.ead,
    "square": attacks.square,
    "spsa": attacks.spsa,
    "nes": attacks.nes,
    "boundary": attacks.boundary,
    "hop_skip_jump": attacks.hop_skip_jump,
    "pixel": attacks.pixel,
    "single_pixel": attacks.single_pixel,
    "jsma": attacks.jsma,
    "universal": attacks.universal,
    "stadv": attacks.stadv,
    "feature_collision": attacks.feature_collision,
    "rotation_translation": attacks.rotation_translation,
    "wasserstein_pgd": attacks.wasserstein_pgd,
    "uniform_noise": attacks.uniform_noise,
    "sign_noise": attacks.sign_noise,
    "gaussian_noise": attacks.gaussian_noise,
    "grey": attacks.grey,
    "restarts": attacks.restarts,
    "worst_case": attacks.worst_case,
    "strongest": attacks.strongest,
    "masked": attacks.masked,
    "early_stop": attacks.early_stop,
    "transfer": attacks.transfer,
    "autoattack": attacks.autoattack,
    "autoattack_plus": attacks.autoattack_plus,
    "screen": attacks.screen,
    "aa_namid": attacks.aa_namid,
    "selector": attacks.selector,
    "pgd_minimal": attacks.pgd_minimal,
    "towards_other": attacks.towards_other,
    "drift": attacks.drift,
    "warm_start": attacks.warm_start,
    "r_fgsm": attacks.r_fgsm,
    "step_ll": attacks.step_ll,
    "pgd_targeted": attacks.pgd_targeted,
    "unlabelled": attacks.unlabelled,
    "drawn_source": attacks.drawn_source,
}
STARTS = ("none", "uniform", "gaussian")
MODELS = {
    "small_cnn": models.small_cnn,
    "wnll_mnist_cnn": models.wnll_mnist_cnn,
    "small_resnet": models.small_resnet,
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet44": models.resnet44,
    "resnet56": models.resnet56,
    "resnet110": models.resnet110,
    "resnet18": models.resnet18,
    "preact_resnet18": models.preact_resnet18,
    "resnet50": models.resnet50,
    "wide_resnet28_10": models.wide_resnet28_10,
    "wide_resnet34_10": models.wide_resnet34_10,
    "vgg19_bn": models.vgg19_bn,
}
ESTIMATORS = {
    "logits_critic": models.logits_critic,
    "layer_critic": models.layer_critic,
}
# Applied in this order.
AUGMENTATIONS = {
    "random_resized_crop": data.random_resized_crop,
    "random_crop": data.random_crop,
    "flip": data.flip,
}
LOSSES = {
    "standard": defenses.standard,
    "adversarial": defenses.adversarial,
    "trades": defenses.trades,
    "mart": defenses.mart,
    "at_alp": defenses.at_alp,
    "teacher_attention": defenses.teacher_attention,
    "clean_logit_pairing": defenses.clean_logit_pairing,
    "logit_squeezing": defenses.logit_squeezing,
    "wnll": defenses.wnll,
    "awp": defenses.awp,
    "critics": defenses.critics,
    "namid": defenses.namid,
    "wmim_critic": defenses.wmim_critic,
    "wmim": defenses.wmim,
}
CRITIC_OBJECTIVES = {
    "separation": defenses.separation,
    "separation_released": defenses.separation_released,
    "maximisation": defenses.maximisation,
}
BOUNDS = {
    "dv": information.dv,
    "donsker_varadhan": information.donsker_varadhan,
    "mine": information.mine,
    "smile": information.smile,
    "f_divergence": information.f_divergence,
    "info_nce": information.info_nce,
    "info_nce_released": information.info_nce_released,
}
STREAMS = {
    "shuffled": data.shuffled_batches,
    "templates": data.template_batches,
}
KERNELS = {"gaussian": interpolation.gaussian, "quartic": interpolation.quartic}
HEADS = {
    "wnll": interpolation.wnll,
    "wnll_released": interpolation.wnll_released,
    "nearest_neighbors": interpolation.nearest_neighbors,
    "kernel_regression": interpolation.kernel_regression,
}
TRANSFORMS = {"total_variation": transforms.total_variation}
DEFENSES = {
    "nip": transforms.nip,
    "noise_voting": transforms.noise_voting,
    "hedge": transforms.hedge,
    "anti_adversary": transforms.anti_adversary,
    "nearest_class_mean": transforms.nearest_class_mean,
    "nearest_neighbor": transforms.nearest_neighbor,
}
MEASURES = {
    "gradient": influence.gradient,
    "activation_x_gradient": influence.activation_x_gradient,
    "conductance": influence.conductance,
    "ablation": influence.ablation,
}
OUTPUTS = {
    "logit": influence.logit,
    "probability": influence.probability,
    "log_probability": influence.log_probability,
    "margin": influence.margin,
}
OPTIMIZERS = {"sgd": training.sgd, "adam": training.adam, "adamw": training.adamw}
SCHEDULES = {
    "constant": training.constant,
    "piecewise": training.piecewise,
    "cosine": training.cosine,
    "one_cycle": training.one_cycle,
}
SUITES = {
    "quick": suites.quick,
    "standard": suites.standard,
    "full": full_suite.full,
    "autoattack": suites.autoattack,
    "screen": suites.screen,
    "namid_paper": namid_suites.namid_paper,
    "namid_adaptive": namid_suites.namid_adaptive,
    "wnll_paper": suites.wnll_paper,
    "wnll_adaptive": suites.wnll_adaptive,
    "nip_paper": nip_suites.nip_paper,
    "nip_adaptive": nip_suites.nip_adaptive,
    "at_alp_paper": at_alp_suites.at_alp_paper,
    "at_alp_transfer": at_alp_suites.at_alp_transfer,
    "at_alp_adaptive": at_alp_suites.at_alp_adaptive,
}
