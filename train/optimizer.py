"""AdamW with warm-up, cosine decay and clipping: the direction of a step, and its length.

The learning rate is a function of the step alone and no part of the optimizer's state: a skipped
step moves along the schedule without counting in Adam's bias correction.

Source: Loshchilov and Hutter arXiv:1711.05101 (AdamW), arXiv:1608.03983 (cosine).
"""

import jax
import jax.numpy as jnp
import optax

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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam and decoupled decay, of which a step subtracts learning rate times updates.

    Weights of two or more dimensions decay, embeddings among them; biases and norms do not.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
    )


def decays(params: dict) -> dict:
    """Whether each leaf is subject to weight decay."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
