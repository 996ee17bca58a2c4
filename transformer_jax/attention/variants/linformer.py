"""Linformer: keys and values projected along time to a fixed number of rows."""

from __future__ import annotations

import jax
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.engines import landmarks as engine
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class Linformer(HeadMixer):
    """Linformer (arXiv:2006.04768).

    E and F are learned, (length, landmarks), one each per layer and shared by its heads (the paper's
    headwise sharing). A shorter sequence uses their first rows.
    """

    name = "linformer"
    family = "landmarks"
    paper = "arXiv:2006.04768"
    time = "T·m"
    small = {"landmarks": 8}
    capability = Capability(
        refused={
            "causal": "every landmark mixes all tokens, so it would leak the future.",
            "packing": "every landmark mixes all tokens of a row, so it would mix documents.",
            "decoding": "every landmark mixes all tokens, so each new token changes all outputs before it.",
        },
        sequence="parallel",
        notes={"cross": "the context may be as long as the model's length"},
    )

    def __init__(self, geometry: Geometry, *, landmarks: int = 64, rngs: nnx.Rngs):
        super().__init__(geometry, rngs=rngs)
        if landmarks < 1:
            raise BadInput(f"linformer landmarks={landmarks} must be at least 1; the paper uses 128 to 256.")
        self.landmarks = landmarks
        # Variance 1 / length keeps a landmark the size of one token. (The theorem's 1 / landmarks makes
        # scores grow with the length.)
        shape, scale = (geometry.length, landmarks), geometry.length**-0.5
        self.E = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.F = nnx.Param(scale * jax.random.normal(rngs.params(), shape))

    def definition(self, q, k, v):
        """Equation 7: softmax(Q (E K)ᵀ / √H) F V, with E and F written (length, landmarks)."""
        E, F = (p[...][: k.shape[0]].T.astype(k.dtype) for p in (self.E, self.F))
        return jax.nn.softmax(q @ (E @ k).T / q.shape[1] ** 0.5, axis=-1) @ (F @ v)

    def core(self, streams, layout, state):
        q, k, v = streams["q"], streams["k"], streams["v"]
        length = k.shape[1]
        if length > self.geometry.length:
            raise BadInput(
                f"linformer projects at most length={self.geometry.length} keys, and was given {length}: "
                f"raise length, or shorten the context."
            )
        keys = engine.compress(k, self.E[...][:length], layout.valid).astype(k.dtype)
        values = engine.compress(v, self.F[...][:length], layout.valid).astype(v.dtype)
        return engine.attend(q, keys, values), {}

    def core_flops(self, batch, length):
        g = self.geometry
        compressed = 4 * batch * length * self.landmarks * g.kv_heads * g.head_size
        return compressed + engine.attend_flops(batch, length, self.landmarks, g.heads, g.head_size)
