"""Performer: softmax attention estimated with positive orthogonal random features (FAVOR+)."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Buffer, Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines.forms import Recurrence
from transformer_jax.attention.engines.recurrence_mixer import RecurrenceMixer
from transformer_jax.errors import BadInput

Draws = Literal["orthogonal", "independent"]


def gaussian(key: jax.Array, features: int, size: int, draws: Draws) -> jax.Array:
    """(features, size): Gaussian rows, "independent" or "orthogonal": within blocks of `size` at right angles
    to each other, each as long as a Gaussian vector (section 2.4 of arXiv:2009.14794)."""
    if draws == "independent":
        return jax.random.normal(key, (features, size))
    blocks = -(-features // size)
    turn, stretch = jax.random.split(key)
    rotations, _ = jnp.linalg.qr(jax.random.normal(turn, (blocks, size, size)))
    rows = rotations.transpose(0, 2, 1).reshape(blocks * size, size)[:features]
    return rows * jnp.linalg.norm(jax.random.normal(stretch, (features, size)), axis=1, keepdims=True)


class RandomFeatures(RecurrenceMixer):
    """Linear attention with features drawn at random, and drawn anew in training.

    They are drawn again after the steps n, 2n, … of a training run, counted from 0, with n = `redraw_every`;
    None: never. With n > 1 an evaluation every n steps has features that the model has been trained with.
    """

    def __init__(
        self, geometry: Geometry, *, features: int, draws: Draws, redraw_every: int | None, rngs: nnx.Rngs
    ):
        super().__init__(geometry, rngs=rngs)
        if features < 1:
            raise BadInput(f"{self.name} features={features} must be at least 1, about H log H.")
        if draws not in get_args(Draws):
            raise BadInput(f"{self.name} draws={draws!r} must be one of {', '.join(get_args(Draws))}.")
        if redraw_every is not None and redraw_every < 1:
            raise BadInput(
                f"{self.name} redraw_every={redraw_every} must be at least 1 training step; None: never."
            )
        self.features, self.draws, self.redraw_every = features, draws, redraw_every
        self.projections = Buffer(self.drawn(rngs.params()))

    def drawn(self, key: jax.Array) -> jax.Array:
        """The ω_i, as rows; here one set for all heads."""
        return gaussian(key, self.features, self.geometry.head_size, self.draws)

    def renew(self, step, key, observed):
        if self.redraw_every is None:
            return
        old = self.projections[...]
        due = (step > 0) & (step % self.redraw_every == 0)
        self.projections[...] = jax.lax.cond(due, lambda: self.drawn(key).astype(old.dtype), lambda: old)

    def feature_flops(self, batch, length):
        g = self.geometry
        return 2 * batch * length * (g.heads + g.kv_heads) * g.head_size * self.features


class Performer(RandomFeatures):
    """Rethinking attention with Performers (arXiv:2009.14794), softmax kernel, positive features.

    q and k are divided by H^¼ each, which the paper leaves out of its equations (section 2.3). The random
    features are drawn once per layer and shared by its heads; of Lemma 1's two maps it is the first, one
    exponential per draw. The normalizer is the sum of the estimated weights. A factor common to all features
    of a query cancels; that of a key, e^{g_s}, is left to the engine's stabilizer. No ε is added to the
    features. `draws` may be "independent", whose variance is larger. Features are drawn anew after every
    training step but the first (`redraw_every`): section 4.2 of the paper redraws, and the authors' code does
    in each call. The paper's trigonometric features are `performer_trigonometric`.
    """

    name = "performer"
    paper = "arXiv:2009.14794"
    small = {"features": 16}
    tolerance = {"float32": 2e-5, "bfloat16": 3e-2}

    def __init__(
        self,
        geometry: Geometry,
        *,
        features: int = 128,
        draws: Draws = "orthogonal",
        redraw_every: int | None = 1,
        rngs: nnx.Rngs,
    ):
        super().__init__(geometry, features=features, draws=draws, redraw_every=redraw_every, rngs=rngs)

    def scaled(self, x: jax.Array) -> jax.Array:
        """x' = x / H^¼, so that qᵀk / √H = q'ᵀk'."""
        return x.astype(jnp.promote_types(jnp.float32, x.dtype)) / self.geometry.head_size**0.25

    def directions(self, x: jax.Array) -> jax.Array:
        """ω_iᵀx, (…, H) → (…, m)."""
        return x @ self.projections[...].T.astype(x.dtype)

    def exponents(self, x: jax.Array) -> jax.Array:
        """log √m φ(x), (…, H) → (…, m): ω_iᵀx' − |x'|²/2 (Lemma 1, in the form of equation 5)."""
        x = self.scaled(x)
        return self.directions(x) - jnp.sum(x * x, axis=-1, keepdims=True) / 2

    def definition(self, q, k, v):
        """Equation 4: D̂⁻¹ Â V with Â = φ(Q) φ(K)ᵀ, lower triangular if causal, and D̂ = diag(Â 1)."""
        A = jnp.exp(self.exponents(q)) @ jnp.exp(self.exponents(k)).T / self.features
        if self.geometry.causal:
            A = jnp.tril(A)
        return A @ v / A.sum(axis=1, keepdims=True)

    def recurrence(self, streams):
        heads = self.geometry.heads
        q, k = self.exponents(streams["q"]), self.exponents(streams["k"])
        highest = jax.lax.stop_gradient(jnp.max(q, axis=-1, keepdims=True))
        gain = jax.lax.stop_gradient(jnp.max(k, axis=-1))
        return Recurrence(
            q=jnp.exp(q - highest),
            k=repeat_heads(jnp.exp(k - gain[..., None]), heads),
            v=repeat_heads(streams["v"], heads).astype(q.dtype),
            log_gain=repeat_heads(gain, heads),
            normalizer="sum",
        )
