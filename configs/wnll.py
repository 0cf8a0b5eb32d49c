"""What the WNLL configs share: head, second stage, the papers' attacks.

Their validation attack climbs the margin: where U is one-hot, as it is for most images,
the derivative of the cross-entropy is exactly 0.
"""

import ml_collections

from robustjax import InputError


def head(*, num_templates: int, **rest) -> dict:
    """WNLL with the papers' kernel and template weight, and the released lists."""
    return dict(
        name="wnll",
        layer="features",
        num_templates=num_templates,
        template_weight="paper",
        similarity=dict(num_neighbors=15, bandwidth_rank=8, kernel="gaussian"),
        **rest,
    )


def stage(
    *,
    num_templates: int,
    num_queries: int,
    num_epochs: int = 5,
    learning_rate: float = 0.05,
) -> dict:
    """The stage that trains the buffer alone, straight through the linear head."""
    return dict(
        loss=dict(
            name="wnll",
            gradient="straight_through",
            loss="softmax",
            emphasis=False,
        ),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=0.0,
            schedule=dict(name="constant", value=learning_rate),
        ),
        num_epochs=num_epochs,
        selection="last",
        trainable=("buffer",),
        data=dict(
            name="templates",
            num_templates=num_templates,
            num_queries=num_queries,
            share=0.2,
        ),
    )


def sgd(value: float, *, drops: tuple[float, ...], factor: float = 0.1) -> dict:
    """The papers' optimizer: momentum 0.9, weight decay 5e-4, a learning rate in steps.

    Their code makes it anew every epoch, which forgets the momentum; this one does not.
    """
    return dict(
        name="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        schedule=dict(name="piecewise", value=value, drops=drops, factor=factor),
    )


def tvm() -> dict:
    """Total-variation minimisation by its equation; p and weight are Guo et al.'s."""
    return dict(weight=0.03, p_drop=0.5, data_term="norm", penalty="rows_columns")


def add_tvm(config: ml_collections.ConfigDict) -> None:
    """TVM before the network, and a training set of images and TVM of them."""
    config.transform = dict(name="total_variation", **tvm())
    config.data.union = dict(total_variation=tvm())


def choose_stages(
    config: ml_collections.ConfigDict, variant: str, wnll_stage: dict
) -> None:
    """The linear stage `train`, and "intended" the stage `wnll` after it."""
    if variant not in ("intended", "released"):
        raise InputError(f"`config` ends in :intended or :released, got :{variant}.")
    config.stages = ("train",)
    if variant == "intended":
        config.wnll = wnll_stage
        config.stages = ("train", "wnll")


def attacks(
    eps: float,
    *,
    step_size: float,
    num_steps: int,
    ifgsm_eps: float | None = None,
    cw_step_size: float = 6e-4,
    cw_steps: int = 50,
) -> dict:
    """Constants of the suite `wnll_paper`; `eps` is FGSM's, and the scale of CW."""
    return dict(
        fgsm=dict(eps=eps),
        ifgsm=dict(eps=ifgsm_eps or eps, step_size=step_size, num_steps=num_steps),
        cw=dict(constant=10.0, step_size=cw_step_size, num_steps=cw_steps),
        cw_scale=eps,
    )
