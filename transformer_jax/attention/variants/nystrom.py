"""Nyströmformer: the softmax matrix approximated from its rows and columns at a few landmarks."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry
from transformer_jax.attention.convolution import centred, product_flops
from transformer_jax.attention.core import repeat_heads
from transformer_jax.attention.engines import landmarks as engine
from transformer_jax.attention.heads import HeadMixer
from transformer_jax.errors import BadInput


class Nystrom(HeadMixer):
    """Nyströmformer (arXiv:2102.03902).

    The landmarks are the means of m segments of the queries and of the keys. A row of L valid tokens is cut
    by its own length, token t into segment ⌊t·m / L⌋ (the paper takes L as a multiple of m); one of fewer
    than m tokens has L landmarks, its tokens. The start of the iteration, Aᵀ / (‖A‖₁ ‖A‖_∞), is that of each
    row and head; the authors' code takes the largest ‖A‖₁ of the batch, which ties its rows together. Their
    code also switches to softmax attention where m is the sequence length; here that is left to the
    iteration. The skip is a convolution of the values, one kernel per head, centred on the token.
    """

    name = "nystrom"
    family = "landmarks"
    paper = "arXiv:2102.03902"
    time = "T·m"
    state = "none"
    small = {"landmarks": 8, "taps": 5}
    capability = Capability(
        refused={
            "causal": "a landmark is a mean of tokens before and after, so it would leak the future.",
            "cross": "the convolution adds neighbouring values to a token, which those of a context are not.",
            "packing": "the landmarks are means over a row, so they would mix documents.",
            "decoding": "each new token moves the landmarks, and with them all outputs before it.",
        },
        sequence="parallel",
    )

    def __init__(
        self,
        geometry: Geometry,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        taps: int = 33,
        rngs: nnx.Rngs,
    ):
        if landmarks < 1 or iterations < 0:
            raise BadInput(
                f"nystrom landmarks={landmarks} must be at least 1 and iterations={iterations} at least 0; "
                f"the paper uses 64 and 6."
            )
        if taps < 1 or taps % 2 == 0:
            raise BadInput(f"nystrom taps={taps} must be odd, so that a token is their middle; try 33.")
        super().__init__(geometry, rngs=rngs)
        self.landmarks, self.iterations = landmarks, iterations
        bound = taps**-0.5  # variance 1 / (3 taps), the usual start of a convolution
        shape = (geometry.heads, taps)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

    def weights(self):
        return {"kernel": self.kernel[...]}

    def definition(self, q, k, v, kernel):
        """(softmax(Q K̃ᵀ / √H) Z softmax(Q̃ Kᵀ / √H) + D) V, Z the `inverse` of softmax(Q̃ K̃ᵀ / √H), where the
        rows of Q̃ and K̃ are means of segments and D_ts = kernel_{s−t} is the convolution (Algorithm 1)."""
        length, reach = len(q), len(kernel) // 2
        m = min(self.landmarks, length)
        cuts = [-(-j * length // m) for j in range(m + 1)]
        means = lambda x: jnp.stack([x[start:stop].mean(0) for start, stop in pairwise(cuts)])
        softmax = lambda q, k: jax.nn.softmax(q @ k.T / q.shape[1] ** 0.5, axis=-1)
        S = softmax(q, means(k)) @ self.inverse(softmax(means(q), means(k))) @ softmax(means(q), k)
        tap = jnp.arange(length)[None] - jnp.arange(length)[:, None] + reach
        D = jnp.where((tap >= 0) & (tap < len(kernel)), kernel[jnp.clip(tap, 0, len(kernel) - 1)], 0)
        return (S + D) @ v

    def inverse(self, A: jax.Array) -> jax.Array:
        """Z ≈ A⁺ (…, m, m): Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))), from Aᵀ / (‖A‖₁ ‖A‖_∞).

        Rows and columns of zeros, of landmarks that a short row lacks, stay zeros.
        """
        I = jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), A.shape)
        largest = lambda axis: jnp.max(jnp.sum(A, axis=axis, keepdims=True), axis=(-2, -1), keepdims=True)
        Z = jnp.swapaxes(A, -2, -1) / (largest(-2) * largest(-1))
        for _ in range(self.iterations):
            AZ = A @ Z
            Z = Z @ (13 * I - AZ @ (15 * I - AZ @ (7 * I - AZ))) / 4
        return Z

    def core(self, streams, layout, state):
        q, k, v, valid = streams["q"], streams["k"], streams["v"], layout.valid
        v = v if valid is None else jnp.where(valid[..., None, None], v, 0)
        if valid is None and engine.even(q, self.landmarks):
            means, present = (engine.means(x, self.landmarks) for x in (q, k)), None
        else:
            parts, present = segments(q.shape[1], layout.lengths, self.landmarks)
            means = (engine.compress(x, parts, valid) for x in (q, k))
        q_means, k_means = (x.astype(q.dtype) for x in means)
        A = engine.weights(q_means, k_means, present)
        if present is not None:
            A = jnp.where(present[:, None, :, None], A, 0)
        read = engine.attend(q_means, k, v, valid)
        read = jnp.einsum("bnij,bjnh->binh", self.inverse(A), read).astype(v.dtype)
        o = engine.attend(q, repeat_heads(k_means, self.geometry.heads), read, present)
        return o + centred(repeat_heads(v, self.geometry.heads), self.kernel[...]), {}

    def core_flops(self, batch, length):
        g, m = self.geometry, min(self.landmarks, length)
        heads = 0 if length % self.landmarks == 0 else g.heads + g.kv_heads  # whose means are products
        means = 2 * batch * length * m * heads * g.head_size
        flops = partial(engine.attend_flops, batch, heads=g.heads, size=g.head_size)
        between = 2 * m * m * batch * g.heads * g.head_size
        inverse = 2 * batch * g.heads * (4 * self.iterations * m**3 + m * m * g.head_size)
        skip = product_flops(batch, length, g.heads, g.head_size, self.kernel[...].shape[1])
        return means + flops(m, length) + flops(length, m) + between + inverse + skip


def segments(length: int, lengths: jax.Array | None, landmarks: int) -> tuple[jax.Array, jax.Array | None]:
    """Weights (T, m), or with `lengths` (B, T, m), of the means of a row's segments, and which of them a row
    has (B, m), None where all."""
    L = jnp.full((1, 1), length) if lengths is None else jnp.maximum(lengths, 1)[:, None]
    token, m = jnp.arange(length)[None], jnp.arange(min(landmarks, length))[None]
    count = jnp.minimum(landmarks, L)
    inside = (token * count // L)[..., None] == m[:, None]
    start, stop = (-(-j * L // count) for j in (m, m + 1))
    means = inside / (stop - start)[:, None]
    return (means[0], None) if lengths is None else (means, m < count)
