"""The failure indicators: what each measures, when it is raised, what to do, who says.

Docs and reports take all of this from here. Thresholds are shares of images unless the
text says otherwise; an indicator that counts images is never raised by a single one.
"""

from typing import NamedTuple


class Rule(NamedTuple):
    """What is fixed about an indicator.

    Attributes:
      name: In snake_case.
      threshold: Raised above it.
      measures: What the value is.
      meaning: What a flag means, and what to do.
      source: Paper, or "ours".
    """

    name: str
    threshold: float
    measures: str
    meaning: str
    source: str


_PINTOR = "Pintor et al., Indicators of Attack Failure, NeurIPS 2022"
_CARLINI = "Carlini et al., On Evaluating Adversarial Robustness, 2019"
_ATHALYE = "Athalye et al., Obfuscated Gradients, ICML 2018"
_CROCE = "Croce and Hein, AutoAttack, ICML 2020"

RULES = (
    Rule(
        "gradient",
        0.05,
        "Share of images at which the gradient of the cross-entropy is not finite, "
        "zero everywhere, or zero in more than half of the pixels though these move "
        "logits.",
        "Gradient attacks are blind there. Differentiate a smooth stand-in (BPDA), or "
        "climb a loss that does not saturate, such as the margin of logits.",
        f"{_PINTOR}, I1; {_ATHALYE}; the threshold is ours",
    ),
    Rule(
        "noise_stability",
        0.5,
        "Mean over images of the relative change of the margin z_y - max z_k under "
        "100 random directions in a box of +-4/255, capped at 1 for each image. The "
        "margin, since the cross-entropy of sure answers is near 0 and its ratios are "
        "noise.",
        "The loss is too rough for its gradient to say where it rises. Climb a "
        "smoothed model, or the expectation over the defense's randomness (EOT).",
        f"{_PINTOR}, I2, there with the attack's loss; the threshold is ours",
    ),
    Rule(
        "silent_success",
        0.05,
        "Share of images that an iterate broke, and the worst case leaves standing.",
        "The attack had an adversarial example and threw it away. Return the best "
        "iterate, not the last one.",
        f"{_PINTOR}, I3; the threshold is ours",
    ),
    Rule(
        "incomplete_optimisation",
        0.75,
        "Share of the images left standing whose loss, made monotone and rescaled to "
        "[0, 1], rises by more than 0.05 over the last 10 steps, or the last half of "
        "fewer than 20.",
        "The attack was stopped while it was getting somewhere. Run more steps, or "
        "larger ones.",
        f"{_PINTOR}, I4 (the 0.05, for one image); the share is ours",
    ),
    Rule(
        "more_steps",
        0.02,
        "Share of images that break when the same attack goes on for as many steps "
        "again, and neither the worst case nor other starts broke.",
        "The accuracy reported is a matter of the budget. Run more steps, until it "
        "does not change.",
        f"{_CARLINI}; the threshold is ours",
    ),
    Rule(
        "more_restarts",
        0.05,
        "Share of images that plain PGD breaks from 5 starts whose keys the evaluation "
        "never used, and the worst case leaves standing.",
        "The evaluation's own draws are luckier than others. Run more restarts with "
        "other keys, and look whether the model knows the evaluation's.",
        f"{_CARLINI}; the threshold is ours",
    ),
    Rule(
        "transfer",
        0.002,
        "By how much accuracy on examples that were made on another model (a "
        "surrogate, or rows of gray- and black-box access) is below that of the "
        "white-box worst case.",
        "Who has the weights can do whatever those can who have not: the white-box "
        "attacks failed. Look at the gradients.",
        f"{_ATHALYE}, section 3.1; {_CARLINI}; the threshold is ours",
    ),
    Rule(
        "unbounded",
        0.05,
        "Accuracy under PGD that may move every pixel through the whole box.",
        "With no radius to respect every image can be broken. An attack that does not "
        "is blind, whatever its radius.",
        f"{_PINTOR}, I6; {_ATHALYE}, section 3.1; the threshold is ours",
    ),
    Rule(
        "monotone",
        0.05,
        "Largest rise of accuracy under PGD from a radius to a larger one, of "
        "half of eps to 4 eps, under L-inf to half of the box.",
        "A larger ball holds the smaller one: accuracy cannot rise. Something happens "
        "at the border of the ball, or the attack's settings do not fit the radius.",
        f"{_CARLINI}; the threshold is ours",
    ),
    Rule(
        "chance",
        0.1,
        "By how much accuracy under PGD at an L-inf radius of half the box, where all "
        "images may become one, exceeds the share of the largest class.",
        "No classifier can do that: attacks fail at every radius on the way there.",
        f"{_CARLINI}; {_ATHALYE}, section 3.1; the threshold is ours",
    ),
    Rule(
        "one_step",
        0.02,
        "By how much accuracy under FGSM is below that under PGD and the worst case.",
        "Many small steps should do more than a large one. They are lost in a rough "
        "loss: smooth it, or take larger steps.",
        f"{_ATHALYE}, section 3.1; the threshold is ours",
    ),
    Rule(
        "noise",
        0.1,
        "Share of up to 16 images that the worst case and PGD leave standing and "
        "10,000 random points of the ball break, half of them uniform, half at its "
        "corners.",
        "Chance finds what gradients do not. The gradients are masked.",
        f"{_ATHALYE}, section 3.1; {_CARLINI}; the threshold is ours",
    ),
    Rule(
        "queries",
        0.002,
        "Share of images that the stage Square of AutoAttack broke after its gradient "
        "attacks; without one, by how much accuracy under a short Square is below that "
        "under PGD and the worst case.",
        "Scores alone do more than gradients: gradients are masked. Attack through a "
        "stand-in (BPDA), and by queries with a full budget.",
        f"{_CROCE}, the flag of the authors' code (0.2 points)",
    ),
    Rule(
        "random",
        0.0,
        "Share of images whose logits differ between two calls of the same program on "
        "the same images; 1 where a classifier judged by many draws is climbed by one.",
        "The same image is right now and wrong then. Hand in draws, and climb their "
        "expectation (attacks.expectation).",
        f"{_ATHALYE}, section 4.2",
    ),
    Rule(
        "transductive",
        0.0,
        "Share of images whose logits change with the other images of the batch, or "
        "with their place in it.",
        "Accuracy depends on whom an image is judged beside, and attacks may have been "
        "beside others. Judge every image alone: BatchNorm by its running statistics, "
        "heads by single queries.",
        "ours",
    ),
    Rule(
        "probabilities",
        0.0,
        "1 where all logits are non-negative and sum to 1 over the classes, else 0.",
        "A softmax under the attack's own softmax flattens the loss. Return the "
        "logits, or the logarithm of the probabilities.",
        f"{_CROCE}, a check of the authors' code",
    ),
    Rule(
        "logit_scale",
        0.05,
        "Share of images that PGD on the cross-entropy of 0.01, 0.1, 10 or 100 times "
        "the logits, or of logits whose median margin is 1, breaks, and neither the "
        "worst case nor 5 starts with the logits as they are.",
        "The cross-entropy saturates, or is flat, at the model's own scale. Climb the "
        "difference of logits ratio or the margin.",
        f"{_CARLINI}; {_CROCE}; the threshold is ours",
    ),
    Rule(
        "precision",
        0.03,
        "Share of images, clean and under PGD, on which the verdict at the device's "
        "default precision of products, or with their operands in bfloat16, is not "
        "that of float32.",
        "The verdict is one of rounding. Judge in float32, and look for huge scales.",
        "ours",
    ),
    Rule(
        "not_a_number",
        0.0,
        "Share of images with a NaN among their logits, clean or on the way of PGD.",
        "NaN is no answer and counts as an error, but its gradient is none either: "
        "mend the model, then attack it again.",
        "ours",
    ),
)
