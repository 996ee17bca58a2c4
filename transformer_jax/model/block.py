"""One block: a mixer that moves information between tokens, an MLP that works on each, residuals."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout, State
from transformer_jax.attention.convolution import ShortConvolution
from transformer_jax.model.config import Mechanism, Transformer
from transformer_jax.parallel.rules import constrain, named

recomputed = partial(jax.checkpoint, prevent_cse=False)
"""Keeps for the backward pass what a function takes, not each of its steps: element-wise work is cheaper than
memory. (No barriers: the layers are scanned, which keeps the passes apart.)"""


def placed(x: jax.Array) -> jax.Array:
    """The residual stream (B, T, D), on a mesh cut in batch and time, its channels whole."""
    return constrain(x, "batch", "sequence")


def normalization(config: Transformer, rngs: nnx.Rngs) -> nnx.Module:
    kind = {"layer": nnx.LayerNorm, "rms": nnx.RMSNorm}[config.norm]
    return kind(config.width, dtype=jnp.dtype(config.compute), rngs=rngs)


class Mlp(nnx.Module):
    """x -> W₂ φ(W₁ x): GELU (arXiv:1606.08415), or SwiGLU's W₂ (silu(W₁ x) ⊙ W₃ x) (arXiv:2002.05202)."""

    def __init__(self, config: Transformer, *, rngs: nnx.Rngs):
        self.kind = config.mlp
        hidden, bias, dtype = config.hidden, config.mlp == "gelu", jnp.dtype(config.compute)
        linear = partial(nnx.Linear, use_bias=bias, dtype=dtype, rngs=rngs)
        inside = {"kernel_metadata": named("embed hidden"), "bias_metadata": named("hidden")}
        self.up = linear(config.width, hidden, **inside)
        self.down = linear(hidden, config.width, kernel_metadata=named("hidden embed"))
        if config.mlp == "swiglu":
            self.gate = linear(config.width, hidden, **inside)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "swiglu":
            act = recomputed(lambda up, gate: self.down(jax.nn.silu(up) * gate))
            return act(self.inside(self.up(x)), self.inside(self.gate(x)))
        return recomputed(lambda up: self.down(jax.nn.gelu(up)))(self.inside(self.up(x)))

    def inside(self, x: jax.Array) -> jax.Array:
        return constrain(x, "batch", "sequence", "hidden")


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); or norm(x + …) where norms come after."""

    def __init__(self, config: Transformer, mechanism: Mechanism, geometry: Geometry, *, rngs: nnx.Rngs):
        self.norm_position = config.norm_position
        self.mixer = catalogue.build(mechanism.name, geometry, rngs=rngs, **dict(mechanism.options))
        self.mixer_norm = normalization(config, rngs)
        taps = 0 if self.mixer.own_convolution else config.convolution
        self.convolution = (
            ShortConvolution(config.width, taps, dtype=config.compute, rngs=rngs) if taps else None
        )
        self.mlp = Mlp(config, rngs=rngs) if config.mlp != "none" else None
        self.mlp_norm = normalization(config, rngs) if config.mlp != "none" else None
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: jax.Array,
        layout: Layout,
        state: State | None = None,
        dropout: jax.Array | None = None,
        observe: bool = False,
    ) -> tuple[jax.Array, State | None, dict[str, jax.Array]]:
        """x (B, T, D) -> x (B, T, D), the state, and what the mixer observes where it is asked to.

        `dropout` is a key, or None for none.
        """
        observed: dict[str, jax.Array] = {}
        state = dict(state) if state is not None else None
        keys = (None, None) if dropout is None else jax.random.split(dropout)

        def mix(x):
            if self.convolution is not None:
                x, moved = self.convolution(x, layout, state and state["convolution"])
                if state is not None:
                    state["convolution"] = moved
            if observe:
                observed.update(self.mixer.observe(x, layout))
            y, moved = self.mixer(x, layout, state and state["mixer"])
            if state is not None:
                state["mixer"] = moved
            return y

        x = self.residual(x, mix, self.mixer_norm, keys[0])
        if self.mlp is not None:
            x = self.residual(x, self.mlp, self.mlp_norm, keys[1])
        return x, state, observed

    def residual(self, x, branch, norm, key):
        drop = lambda y: self.dropout(y, deterministic=key is None, rngs=key)
        norm = recomputed(norm.__call__)
        if self.norm_position == "pre":
            return placed(x + drop(branch(norm(x))))
        return placed(norm(x + drop(branch(x))))

    def init_state(self, batch: int) -> State:
        state = {"mixer": self.mixer.init_state(batch)}
        if self.convolution is not None:
            state["convolution"] = self.convolution.init_state(batch)
        return state
