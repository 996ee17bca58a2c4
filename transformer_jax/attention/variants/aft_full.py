"""AFT-full: a softmax of every key channel over time, with learned biases between places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import softmax_cache
from transformer_jax.attention.engines.channels import biases, by_factors, causal, joined, padded
from transformer_jax.attention.engines.pool import pooled
from transformer_jax.attention.variants.aft_simple import AFTSimple
from transformer_jax.errors import BadInput


class AFTFull(AFTSimple):
    """An attention free transformer (arXiv:2105.14103), AFT-full, its position biases factorized.

    w_{t,t'} = u_tᵀ r_t' (the paper writes v for r) is one for all channels. Places count from the start of a
    segment. exp(K + w) is formed as a product of two exponentials, each of which has its largest divided
    out, except between the tokens of a causal block: keys may differ by any amount, but weights that w alone
    makes e⁴⁰ times smaller than its largest are lost in float32. Channels are those of AFT-simple.
    """

    name = "aft_full"
    family = "softmax"
    time = "T²"
    state = "T"
    small = {"factors": 4}
    capability = Capability(refused={"cross": "its biases are between the places of one sequence."})

    def __init__(self, geometry: Geometry, *, factors: int = 128, rngs: nnx.Rngs):
        if factors < 1:
            raise BadInput(f"aft_full factors={factors} must be at least 1; the paper uses 128.")
        super().__init__(geometry, rngs=rngs)
        # The biases start near 0, with deviation 0.1.
        scale, shape = 0.1**0.5 * factors**-0.25, (geometry.length, factors)
        self.u, self.r = (nnx.Param(scale * jax.random.normal(rngs.params(), shape)) for _ in range(2))

    def definition(self, q, k, v):
        """Y_t = σ(Q_t) ⊙ Σ_t' exp(K_t' + w_{t,t'}) ⊙ V_t' / Σ_t' exp(K_t' + w_{t,t'}) (equation 2; the
        factors of w are in section 3.2), over all t' or, causal, those to t."""
        u, r = (factor[...][: len(q)].astype(q.dtype) for factor in (self.u, self.r))
        logits = k[None] + u @ r.T
        if self.geometry.causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape, bool)), logits, -jnp.inf)
        return jax.nn.sigmoid(q)[:, None] * (jax.nn.softmax(logits, axis=-1) @ v)

    def core(self, streams, layout, state):
        exact = jnp.promote_types(jnp.float32, streams["v"].dtype)
        q, k, v = (streams[name].astype(exact) for name in ("q", "k", "v"))
        v = v[..., 0]
        factors = lambda places: tuple(factor[...].astype(exact)[places] for factor in (self.u, self.r))
        # Without segments and state the places, and so the biases, are the same in all rows.
        alike = layout.segments is None and state is None
        places = jnp.arange(k.shape[1])[None] if alike else layout.positions
        u, r = factors(places)
        if state is None:
            segment = jnp.zeros_like(places) if layout.segments is None else layout.segments
        else:
            segment = softmax_cache.segments(layout, state)
        if layout.valid is not None:
            k = jnp.where(layout.valid[..., None], k, -jnp.inf)
        if not self.geometry.causal:
            top = pooled("max", k, layout)
            k = k - lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
            seen = segment[:, :, None] == segment[:, None]
            o, _ = by_factors(biases(u, r), seen, k, v)
        else:
            o, lse = causal(u, r, segment, k, v)
            if state is not None:
                old_k, old_v = (
                    jnp.moveaxis(state[name][:, :, 0].astype(exact), -1, 1) for name in ("k", "v")
                )
                # Only the latest segment goes on.
                going = (state["segment"] == state["last"][:, None])[..., None]
                w = biases(u, factors(state["place"])[1])
                seen = segment[..., None] == state["last"][:, None, None]
                o, _ = joined([(o, lse), by_factors(w, seen, jnp.where(going, old_k, -jnp.inf), old_v)])
                new = {"k": streams["k"][..., None], "v": streams["v"], "place": places}
                state = softmax_cache.store(state, new, layout)
        return (jax.nn.sigmoid(q) * repeat_heads(o, self.mixed_heads))[..., None], state or {}

    def init_state(self, batch):
        g = self.geometry
        state = softmax_cache.empty(batch, self.key.out_features, 1, g.length, g.dtype)
        return state | {"place": jnp.zeros((batch, g.length), jnp.int32)}

    def core_flops(self, batch, length):
        rows = padded(length) if self.geometry.causal else length
        return rows**2 * (2 * self.u.shape[1] + 4 * batch * self.key.out_features)
