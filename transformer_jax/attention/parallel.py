"""Several mechanisms side by side in one layer, each on its share of the heads.

A user's own is as short as this, and enters the catalogue by its name:

    class FullAndDecaying(ParallelMixer):
        "Full attention beside a gated linear attention."
        name, time, state = "full_and_decaying", "T²", "T"
        parts = (Full, GatedLinearAttention)

        def __init__(self, geometry: Geometry, *, rngs: nnx.Rngs):
            super().__init__(geometry, options=({}, {}), rngs=rngs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
from flax import nnx

from transformer_jax.attention.contract import Capability, Geometry, Mixer
from transformer_jax.errors import BadInput


class ParallelMixer(Mixer):
    """The sum of what its parts, each with its own projections, make of x.

    As the output projection of each part is its own, that is one projection of all their heads side by
    side. What any part is not defined for, the whole is not: the reasons are the parts'.
    """

    family = "parallel heads"
    parts: ClassVar[tuple[type[Mixer], ...]] = ()

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        if "parts" in vars(cls):
            cls.capability = joint(cls.parts)
            cls.own_convolution = any(part.own_convolution for part in cls.parts)

    def __init__(
        self,
        geometry: Geometry,
        *,
        options: Sequence[Mapping[str, Any]],
        shares: Sequence[int] | None = None,
        rngs: nnx.Rngs,
    ):
        """`options` of each part. `shares` of the heads, or of the channels of each where the heads do not
        divide, equal ones where None. Raises BadInput where neither does."""
        super().__init__(geometry)
        self.shares = tuple(shares or (1,) * len(self.parts))
        each = zip(self.parts, options, self.shares, strict=True)
        kinds: list[tuple[Any, Mapping[str, Any], Geometry]] = [
            (part, chosen, self._share(share)) for part, chosen, share in each
        ]
        self.mixers = nnx.List([part(mine, rngs=rngs, **chosen) for part, chosen, mine in kinds])

    def _share(self, share: int) -> Geometry:
        g, total = self.geometry, sum(self.shares)
        if g.heads * share % total == 0 and (g.kv_heads == 1 or g.kv_heads * share % total == 0):
            kv_heads = max(1, g.kv_heads * share // total)
            return replace(g, heads=g.heads * share // total, kv_heads=kv_heads)
        if g.head_size * share % total == 0:
            return replace(g, head_size=g.head_size * share // total)
        raise BadInput(
            f"{self.name} shares heads={g.heads}, kv_heads={g.kv_heads} of head_size={g.head_size} among "
            f"{len(self.parts)} mechanisms as {self.shares}: choose heads, or a head_size, that divide so."
        )

    def __call__(self, x, layout, state=None, context=None):
        self.admit(layout, state, context)
        y, moved = 0, {}
        for i, (mixer, share) in enumerate(zip(self.mixers, self.shares, strict=True)):
            part, after = mixer(x, layout, None if state is None else state[str(i)], context)
            # A projection starts with the variance that suits its own inputs alone; this suits all of them.
            y = y + (share / sum(self.shares)) ** 0.5 * part
            moved[str(i)] = after
        return y, None if state is None else moved

    def init_state(self, batch):
        self.capability.require("decoding", self.name)
        return {str(i): mixer.init_state(batch) for i, mixer in enumerate(self.mixers)}

    def observe(self, x, layout):
        return {str(i): mixer.observe(x, layout) for i, mixer in enumerate(self.mixers)}

    def renew(self, step, key, observed):
        keys = jax.random.split(key, len(self.mixers))
        for i, mixer in enumerate(self.mixers):
            mixer.renew(step, keys[i], observed[str(i)])

    def flops(self, batch, length):
        return sum(mixer.flops(batch, length) for mixer in self.mixers)


def joint(parts: Sequence[type[Mixer]]) -> Capability:
    """What all parts are defined for; refusals and notes say whose they are."""
    order = ("parallel", "gathered", "serial", "refused")
    refused: dict[Any, str] = {}
    notes: dict[Any, str] = {}
    for part in parts:
        for said, own in ((refused, part.capability.refused), (notes, part.capability.notes)):
            for mode, text in own.items():
                said[mode] = "; ".join(filter(None, (said.get(mode), f"{part.name}: {text}")))
    sequence = max((part.capability.sequence for part in parts), key=order.index)
    return Capability(refused=refused, sequence=sequence, notes=notes)
