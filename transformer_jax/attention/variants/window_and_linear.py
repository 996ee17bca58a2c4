"""Heads with a sliding window beside heads with a linear attention, in one layer."""

from __future__ import annotations

from flax import nnx

from transformer_jax.attention.contract import Geometry
from transformer_jax.attention.parallel import ParallelMixer
from transformer_jax.attention.variants.based_taylor import BasedTaylor
from transformer_jax.attention.variants.sliding_window import SlidingWindow


class WindowAndLinear(ParallelMixer):
    """Half of the heads are `sliding_window`, exact and near; half `based_taylor`, far and of constant size.

    Where there is one head, or an odd number, each is halved. Based (arXiv:2402.18668) has the same two in
    turn, layer by layer, as the pattern based_taylor+sliding_window has. Heads of two kinds side by side are
    Hymba's idea (arXiv:2411.13676, section 2.1 and equation 3), whose other kind is Mamba and which
    normalizes the output of each kind and weighs it by learned scales before one output projection; here is
    neither norm nor scale.
    """

    name = "window_and_linear"
    paper = "arXiv:2411.13676"
    time = "T·w"
    state = "w"
    parts = (SlidingWindow, BasedTaylor)
    small = {"window": 8, "feature_size": 4}

    def __init__(self, geometry: Geometry, *, window: int = 64, feature_size: int = 16, rngs: nnx.Rngs):
        options = ({"window": window}, {"feature_size": feature_size})
        super().__init__(geometry, options=options, rngs=rngs)
