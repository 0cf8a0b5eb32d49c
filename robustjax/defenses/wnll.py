"""The second stage of WNLL training: interpolation trains the buffer.

Rows of a batch are templates first, then queries. With X^ the buffered features, U the
interpolated scores of the queries and Z = X^ W_L + b the linear head's logits, the
papers replace the derivative of the interpolation by that of the linear head. See "Deep
Neural Nets with Interpolating Function as Output Activation" (Wang et al., 2018).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import _checks, objectives
from robustjax._checks import InputError
from robustjax._gradients import with_gradient_of
from robustjax.defenses._common import accuracy
from robustjax.interpolation import (
    Gradient,
    Joint,
    Similarity,
    Solver,
    TemplateWeight,
    features_and_logits,
    log_scores,
)
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Batch,
    Key,
    LossAux,
    LossFn,
    Model,
    PyTree,
)


def wnll(
    model: Model,
    *,
    num_templates: int,
    num_queries: int,
    layer: str = "features",
    similarity: Similarity | None = None,
    template_weight: TemplateWeight = "paper",
    gradient: Gradient = "straight_through",
    loss: Literal["softmax", "log"] = "softmax",
    emphasis: bool = False,
    attack: Attack | None = None,
    perturb_templates: bool = False,
    solver: Solver | None = None,
) -> LossFn:
    """Cross-entropy of interpolated scores, the network in mode "eval".

    Made for a stage whose `trainable` is the buffer. Nothing but the buffer should
    move, hence the running statistics of BatchNorm and no dropout; the papers do not
    say which.

    Args:
      model: The classifier, with a linear head on `layer`.
      num_templates: The first so many rows of a batch.
      num_queries: The rows after them.
      layer: The buffered features.
      similarity: Of the graph; None is the default one.
      template_weight: As in `interpolation.interpolate`.
      gradient: "straight_through" is the papers': values of WNLL, derivative of the
        linear head. "exact" differentiates the solve.
      loss: "softmax" is the released code's: softmax cross-entropy of the scores as if
        they were logits, over all rows, templates with their one-hot labels. It lies in
        [1.46, 2.46] for 10 classes. "log" is -log U_y over the queries.
      emphasis: Whether the scores of queries that are right become one-hot, so that
        errors weigh more; the released code's intention, which its reordered rows miss.
      attack: None trains on clean images; else queries are attacked through the
        interpolation with the same gradient. The papers' code has the branch, unused.
      perturb_templates: Whether the attack moves the templates too, which are clean
        again when the loss is computed.
      solver: How the system is solved.

    Returns:
      A loss with the metrics `accuracy/wnll`, of the queries, and `accuracy/linear`.

    Raises:
      InputError: an argument is unknown; at the call, if the batch is of another size.

    Example:
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn(buffer=1, dense=8))
      >>> x = jax.random.uniform(jax.random.key(0), (30, 8, 8, 1))
      >>> params, model_state = model.init(jax.random.key(1), x)
      >>> loss = wnll(model, num_templates=20, num_queries=10)
      >>> batch = Batch(x, jnp.arange(30) % 10)
      >>> value, aux = loss(params, model_state, jax.random.key(2), batch)
      >>> 1.46 < float(value) < 2.47, sorted(aux.metrics)
      (True, ['accuracy/linear', 'accuracy/wnll'])
    """
    _checks.positive_int(num_templates=num_templates, num_queries=num_queries)
    _checks.one_of(("softmax", "log"), loss=loss)
    joint = Joint(
        similarity or Similarity(), template_weight, gradient, solver or Solver()
    )

    def scores(params, model_state, x, y) -> tuple[Array, Array]:
        """Of all rows, [N, K]: one-hot for the templates, U for the queries; logits."""
        features, logits = features_and_logits(model, params, model_state, x, layer)
        return joint.scores(features, logits, y[:num_templates]), logits

    def per_row(rows: Array, y: Array) -> Array:
        """The loss of each row, [N]."""
        if loss == "log":
            rows = log_scores(rows)
        return objectives.cross_entropy(rows, y)

    def craft(params: PyTree, model_state: PyTree, key: Key, batch: Batch) -> Array:
        if attack is None:
            return batch.x
        params = jax.lax.stop_gradient(params)
        clean = batch.x[:num_templates]

        def joined(z: Array) -> Array:
            rows, _ = scores(params, model_state, z, batch.y)
            return log_scores(rows) if loss == "log" else rows

        def queries(z: Array) -> Array:
            return joined(jnp.concatenate([clean, z]))[num_templates:]

        # Traced even outside `jit`: a look at the first images alone has no templates.
        rows = slice(0 if perturb_templates else num_templates, None)
        fun = joined if perturb_templates else queries
        given = attack
        run = jax.jit(lambda z, y: given(key, fun, z, y))
        x_adv = run(batch.x[rows], batch.y[rows])
        return jnp.concatenate([clean, x_adv[-num_queries:]])

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        del key  # nothing is drawn
        if batch.x.shape[0] != num_templates + num_queries:
            raise InputError(
                f"`batch` must hold `num_templates` + `num_queries` = "
                f"{num_templates + num_queries} rows, got {batch.x.shape[0]}: take "
                "data.template_batches, and accumulate=1."
            )
        rows, logits = scores(params, model_state, x_adv, batch.y)
        right = batch.y
        queries = slice(num_templates, None)
        metrics = {
            "accuracy/wnll": accuracy(rows[queries], right[queries]),
            "accuracy/linear": accuracy(logits[queries], right[queries]),
        }
        if emphasis:
            done = (rows.argmax(axis=1) == right)[:, None]
            sure = jax.nn.one_hot(right, rows.shape[1])
            value = jax.lax.stop_gradient(jnp.where(done, sure, rows))
            rows = with_gradient_of(value, rows)
        each = per_row(rows, right)
        value = each.mean() if loss == "softmax" else each[queries].mean()
        return value, LossAux(model_state, metrics)

    return AdversarialLoss(craft, objective)
