"""AdamW with warm-up, cosine decay and clipping: the direction of a step, and its length.

The learning rate is a function of the step alone and no part of the optimizer's state: a skipped
step moves along the schedule without counting in Adam's bias correction.

Source: Loshchilov and Hutter arXiv:1711.05101 (AdamW), arXiv:1608.03983 (cosine).
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .config import OptimizerConfig

Array = jax.Array


def learning_rate(step: Array | int, config: OptimizerConfig, *, steps: int) -> Array:
    """The learning rate of step 0, 1, ..., steps - 1, float32.

    It rises linearly, from peak / warmup_steps at step 0 to the peak at the last step of warm-up,
    then falls along half a cosine to final_lr_ratio * peak at the last step, and stays there.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = max(config.warmup_steps, 1)
    rising = (step + 1) / warmup
    progress = jnp.clip((step + 1 - warmup) / max(steps - warmup, 1), 0, 1)
    final = config.final_lr_ratio
    falling = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return config.peak_lr * jnp.where(step < warmup, rising, falling)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Clipping, Adam and decoupled decay, of which a step subtracts learning rate times updates.

    Weights of two or more dimensions decay, embeddings among them; biases and norms do not.
    `update` takes `is_taken`, a bool array: where it is false, Adam's state stays as it was and the
    updates mean nothing.
    """
    return optax.chain(
        optax.stateless(lambda gradients, _: _clipped(gradients, config.clip_norm)),
        _adam(config),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
    )


def moments_are_finite(state: optax.OptState) -> Array:
    """Whether each tensor's moments are finite, its second ones not below zero; bool [tensors].

    Where they are, and the gradients, no NaN reaches the updates of `make_optimizer`, whose state
    this is; a moment that is finite and wrong is not found. To look at the updates themselves,
    before any moment is overwritten, takes room for all of them.
    """
    first, second = (jax.tree.leaves(optax.tree.get(state, name)) for name in ("mu", "nu"))
    return jnp.stack(
        [jnp.all(jnp.isfinite(m + v) & (v >= 0)) for m, v in zip(first, second, strict=True)]
    )


def _clipped(gradients: optax.Updates, limit: float) -> optax.Updates:
    """The gradients, with a norm of all together that is `limit` at most.

    One factor for all, where `optax.clip_by_global_norm` divides each gradient: XLA fuses a product
    into all its uses, and keeps the quotients of all gradients in memory.
    """
    squares = [jnp.sum(jnp.square(gradient)) for gradient in jax.tree.leaves(gradients)]
    factor = limit / jnp.maximum(jnp.sqrt(sum(squares)), limit)
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


def _adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` in an order that lets XLA change donated moments in place.

    There the update is computed from the old moments together with the new ones. On a CPU the old
    ones are then copied, all of them: two more models in memory. Here the new moments come first,
    the old ones kept where the step is not taken, and the update from what has become of them.
    """
    beta1, beta2 = config.beta1, config.beta2

    def update(
        gradients: optax.Updates,
        state: optax.ScaleByAdamState,
        params: optax.Params | None = None,
        *,
        is_taken: Array | bool = True,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = jnp.where(is_taken, optax.safe_increment(state.count), state.count)

        def of_tensor(gradient: Array, first: Array, second: Array) -> tuple[Array, Array, Array]:
            new = (
                (1 - beta1) * gradient + beta1 * first,
                (1 - beta2) * jnp.square(gradient) + beta2 * second,
            )
            kept = jax.tree.map(
                lambda new, old: jnp.where(is_taken, new, old), new, (first, second)
            )
            first, second = lax.optimization_barrier(kept)
            root = jnp.sqrt(second / (1 - beta2**count))
            return first / (1 - beta1**count) / (root + config.epsilon), first, second

        results = jax.tree.map(of_tensor, gradients, state.mu, state.nu)
        updates, mu, nu = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), results
        )
        return updates, optax.ScaleByAdamState(count, mu, nu)

    init = optax.scale_by_adam().init
    # pyrefly: ignore[bad-argument-type]: it takes one extra argument by name, and refuses others
    return optax.GradientTransformationExtraArgs(init, update)


def decays(params: dict) -> dict:
    """Whether each leaf is subject to weight decay."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
