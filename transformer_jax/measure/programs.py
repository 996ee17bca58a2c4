"""What the benchmark runs: attention cores, decoding and training steps, ours and those we compare with."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout, Mixer
from transformer_jax.attention.core import CoreMixer
from transformer_jax.measure.program import compiled, compiled_temporaries
from transformer_jax.model.config import Mechanism, Transformer
from transformer_jax.model.transformer import Model
from transformer_jax.parallel.mesh import make_mesh
from transformer_jax.train import devices, step
from transformer_jax.train.config import Train
from transformer_jax.train.state import dismantle, initial

JAX_NN, TORCH = "jax.nn", "torch"
"""The two references: jax.nn.dot_product_attention and torch's scaled_dot_product_attention."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One contender at one length.

    Attributes:
      name: of the variant or the reference. part: what is timed, "core" or "mixer" (with its projections).
      run: pass -> a function that returns when its work is done; empty where it does not fit.
      temporaries: pass -> bytes; empty where it cannot be read.
      skipped: why it was not run.
    """

    name: str
    part: str
    run: dict[str, Callable[[], object]]
    temporaries: dict[str, int]
    skipped: str = ""


def torch_device() -> str | None:
    """PyTorch's name for the device that JAX runs on; None where PyTorch is missing or cannot use it."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if jax.default_backend() == "gpu":
        return "cuda" if torch.cuda.is_available() else None
    return "cpu" if jax.default_backend() == "cpu" else None


def memory() -> int:
    """Bytes that a program may take here: half of the device's, or of the machine's, memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2


def too_large(temporaries: dict[str, int]) -> str:
    """Why a program with these temporaries is not run here; empty where it may."""
    need = max(temporaries.values())
    return f"needs {need / 2**30:.0f} GiB of temporaries" if need > memory() else ""


def jax_program(name: str, part: str, passes: dict[str, tuple[Callable, tuple]]) -> Program:
    """Compiles each pass for its arguments; runs none that would not fit in memory."""
    programs = {key: compiled(fn, *args) for key, (fn, args) in passes.items()}
    temporaries = {key: compiled_temporaries(program) for key, program in programs.items()}
    if skipped := too_large(temporaries):
        return Program(name=name, part=part, run={}, temporaries=temporaries, skipped=skipped)

    def run(key):
        return lambda: jax.block_until_ready(programs[key](*passes[key][1]))

    return Program(name=name, part=part, run={key: run(key) for key in programs}, temporaries=temporaries)


def there_and_back(fn: Callable, inputs: Any) -> dict[str, tuple[Callable, tuple]]:
    """The two passes of `fn(inputs)`: forward, and forward with the gradient of every input."""
    cotangent = jax.tree.map(lambda y: jnp.ones(y.shape, y.dtype), jax.eval_shape(fn, inputs))

    def both(inputs, cotangent):
        y, back = jax.vjp(fn, inputs)
        return y, back(cotangent)[0]

    return {"forward": (fn, (inputs,)), "forward_backward": (both, (inputs, cotangent))}


def variant_core(mechanism: Mechanism, geometry: Geometry, batch: int) -> Program:
    """A variant's core on the streams that its own projections make of random input.

    A mechanism without a core of its own is timed whole, and its `part` says so.
    """
    mixer = catalogue.build(mechanism.name, geometry, rngs=nnx.Rngs(0), **dict(mechanism.options))
    layout = Layout.plain(batch, geometry.length)
    x = jax.random.normal(
        jax.random.key(1), (batch, geometry.length, geometry.width), jnp.dtype(geometry.dtype)
    )
    graph, learned, rest = nnx.split(mixer, nnx.Param, ...)
    part, streams = "mixer", x
    if isinstance(mixer, CoreMixer):
        part, streams = "core", jax.jit(lambda x: mixer.streams(x, layout)[0])(x)

    def core(learned: nnx.State, streams: Any) -> jax.Array:
        here: Mixer = nnx.merge(graph, learned, rest)
        if isinstance(here, CoreMixer):
            return here.core(streams, layout, None)[0]
        return here(streams, layout)[0]

    # A core's gradient is that of its streams and of the parameters it uses itself, not of the projections.
    leaves, tree = jax.tree.flatten(learned)
    jaxpr = jax.make_jaxpr(core)(learned, streams).jaxpr
    read = {id(var) for eqn in jaxpr.eqns for var in eqn.invars}
    used = [leaf if id(var) in read else None for leaf, var in zip(leaves, jaxpr.invars, strict=False)]

    def fn(inputs):
        own, streams = inputs
        filled = [leaf if mine is None else mine for leaf, mine in zip(leaves, own, strict=True)]
        return core(jax.tree.unflatten(tree, filled), streams)

    return jax_program(str(mechanism), part, there_and_back(fn, (used, streams)))


def decode_step(mechanism: Mechanism, geometry: Geometry, batch: int, position: int) -> Program:
    """A step of one token after `position` others, on their state: every call decodes the same place anew."""
    mixer = catalogue.build(mechanism.name, geometry, rngs=nnx.Rngs(0), **dict(mechanism.options))
    graph, values = nnx.split(mixer)

    def call(values, x, layout, state):
        return nnx.merge(graph, values)(x, layout, state)

    inputs = lambda length: jax.random.normal(
        jax.random.key(1), (batch, length, geometry.width), jnp.dtype(geometry.dtype)
    )
    empty = mixer.init_state(batch)
    _, state = jax.jit(call)(values, inputs(position), Layout.plain(batch, position), empty)
    leaves, tree = jax.tree.flatten(state)
    # Integers say where tokens stand, and stay as they are; what is held is updated in place.
    fixed = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]

    def again(values, x, layout, held, places):
        held, places = iter(held), iter(places)
        state = jax.tree.unflatten(tree, [next(places if place else held) for place in fixed])
        y, state = call(values, x, layout, state)
        return y, [leaf for leaf, place in zip(jax.tree.leaves(state), fixed, strict=True) if not place]

    held, places = (
        [x for x, place in zip(leaves, fixed, strict=True) if place == kind] for kind in (False, True)
    )
    token, here = inputs(1), Layout(jnp.full((batch, 1), position))
    step = compiled(jax.jit(again, donate_argnums=3), values, token, here, held, places)

    def run():
        nonlocal held
        y, held = step(values, token, here, held, places)
        return y.block_until_ready()

    temporaries = {"step": compiled_temporaries(step)}
    return Program(name=str(mechanism), part="mixer", run={"step": run}, temporaries=temporaries)


def random_heads(geometry: Geometry, batch: int) -> tuple[jax.Array, ...]:
    """q (B, T, N, H), k and v (B, T, K, H), normal."""
    g = geometry
    return tuple(
        jax.random.normal(key, (batch, g.length, heads, g.head_size), jnp.dtype(g.dtype))
        for key, heads in zip(
            jax.random.split(jax.random.key(2), 3), (g.heads, g.kv_heads, g.kv_heads), strict=True
        )
    )


def jax_nn_core(geometry: Geometry, batch: int) -> Program:
    attend = partial(jax.nn.dot_product_attention, is_causal=geometry.causal)
    return jax_program(
        JAX_NN, "core", there_and_back(lambda qkv: attend(*qkv), random_heads(geometry, batch))
    )


def torch_core(geometry: Geometry, batch: int, device: str) -> Program:
    import torch

    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[geometry.dtype]
    arrays = random_heads(geometry, batch)
    qkv = [
        torch.tensor(np.asarray(x, np.float32)).to(device, kind).transpose(1, 2).contiguous() for x in arrays
    ]
    sdpa: Callable = partial(
        torch.nn.functional.scaled_dot_product_attention,
        is_causal=geometry.causal,
        enable_gqa=geometry.heads != geometry.kv_heads,
    )
    cotangent = torch.ones_like(qkv[0])
    learned = [x.clone().requires_grad_() for x in qkv]

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            sdpa(*qkv)
        wait()

    def both():
        torch.autograd.grad(sdpa(*learned), learned, cotangent)
        wait()

    return Program(
        name=TORCH, part="core", run={"forward": forward, "forward_backward": both}, temporaries={}
    )


def training_step(config: Transformer, *, vocabulary: int, tokens: jax.Array, causal: bool = True) -> Program:
    """A step of the project's own training with AdamW: of a byte model that predicts each next one of tokens
    (B, T + 1), or of one that is not causal and tells two kinds of text apart."""
    model = Model(
        config,
        vocabulary=vocabulary,
        outputs=vocabulary if causal else 2,
        target="token" if causal else "sequence",
        causal=causal,
        length=tokens.shape[1] - 1,
        rngs=nnx.Rngs(0),
    )
    skeleton, params, rest = dismantle(model)
    recipe = Train(steps=1, batch=len(tokens), weight_decay=1e-4, schedule="constant", clip=None)
    mesh = make_mesh(recipe.mesh)
    program = step.program(skeleton, recipe, mesh)
    state = initial(params, rest, program.rule, seed=0, peak=1e-3, weight_decay=recipe.weight_decay)
    targets = tokens[:, 1:] if causal else tokens[:, -1] % 2
    weights = jnp.ones(targets.shape, jnp.float32)
    stack = {"inputs": tokens[None, :, :-1], "targets": targets[None], "weights": weights[None]}
    trained, one = jax.device_put(state, devices.shardings(skeleton, mesh, state)), np.int32(1)
    stack = jax.device_put(stack, devices.stacked(mesh))
    steps = compiled(program.steps, trained, stack, one)

    def run():
        nonlocal trained
        trained, sums = steps(trained, stack, one)
        return sums["loss"].block_until_ready()

    temporaries = {"step": compiled_temporaries(steps)}
    skipped = too_large(temporaries)
    return Program(
        name="+".join(map(str, config.mixers)),
        part="model",
        run={} if skipped else {"step": run},
        temporaries=temporaries,
        skipped=skipped,
    )


def torch_training_step(config: Transformer, *, vocabulary: int, tokens: jax.Array, device: str) -> Program:
    """The same step in PyTorch, whose attention is full."""
    import torch

    from transformer_jax.measure import torch_model

    model = torch_model.Decoder(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        vocabulary=vocabulary,
        length=tokens.shape[1] - 1,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    inputs = torch.tensor(np.asarray(tokens)).long().to(device)
    one = partial(torch_model.training_step, model, optimizer, inputs)
    return Program(name=TORCH, part="model", run={"step": one}, temporaries={})
