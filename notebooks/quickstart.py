# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a definition to a comparison
#
# An attention mechanism takes queries, keys and values and mixes the values along time. This page
# goes the whole way: it reads what a mechanism *means*, looks at the matrix that it applies, proves
# that the fast execution computes that meaning, and trains several mechanisms against each other.

# %%
import contextlib
import inspect
import io
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
from flax import nnx

from transformer_jax.attention import catalogue
from transformer_jax.attention.contract import Geometry, Layout
from transformer_jax.attention.definition import effective_matrix

# %% [markdown]
# ## What a mechanism means
#
# Each mechanism of the catalogue is one short file with one `definition`: the paper's formula for one
# head of one sequence. It is written for reading; nothing that is fast looks like this.

# %%
for name in ("full", "linear", "retention"):
    print(inspect.getsource(catalogue.find(name).definition))

# %% [markdown]
# ## What it does: the effective matrix
#
# Every definition is linear in the values, so applied to the identity in their place it yields a matrix:
# entry (t, s) is how much of value s reaches output t. For softmax attention that is the attention map.
# A recurrence has one too, although it never forms it, and its entries may be negative.

# %%
names = ("full", "sliding_window", "bigbird", "linear", "performer", "retention", "gated_delta_net")
geometry = Geometry(width=32, heads=2, length=48)
x = jax.random.normal(jax.random.key(0), (1, 48, 32))
mixers = {
    name: catalogue.build(name, geometry, rngs=nnx.Rngs(1), **catalogue.find(name).small) for name in names
}

figure, rows = plt.subplots(2, 4, figsize=(11, 5.6))
for axes, (name, mixer) in zip(rows.flat, mixers.items(), strict=False):
    matrix = effective_matrix(mixer, x)[0, 0]
    bound = abs(matrix).max()
    axes.imshow(matrix, cmap="RdBu", vmin=-bound, vmax=bound)
    axes.set_title(name)
    axes.set_xticks([])
    axes.set_yticks([])
rows.flat[-1].axis("off")
figure.supxlabel("value s")
figure.supylabel("output t")
figure.tight_layout()

# %% [markdown]
# Nothing lies above the diagonal: no output sees a later value. The conformance suite proves that for
# every mechanism, by changing a token and looking at what moves.
#
# ## One meaning, several executions
#
# Training runs the whole sequence at once; generation runs one token at a time on a state. They must
# agree. Here is the same sequence cut in two, and its state: constant for a recurrence, growing
# with the length for full attention.

# %%
mixer = mixers["gated_delta_net"]
whole, _ = mixer(x, Layout.plain(1, 48))
prompt, state = mixer(x[:, :30], Layout.plain(1, 30), mixer.init_state(1))
rest, state = mixer(x[:, 30:], Layout(Layout.plain(1, 48).positions[:, 30:]), state)
difference = abs(jax.numpy.concatenate([prompt, rest], axis=1) - whole).max()
assert difference < 1e-5
print(f"largest difference after the cut: {difference:.1e}")

# %% [markdown]
# The suite runs this check, and a dozen others, in float64 on any mechanism, ours or yours:
# `python -m transformer_jax check my_mechanism.py`.

# %%
from transformer_jax.conformance import check  # noqa: E402

for result in check("sliding_window"):
    assert result.outcome != "failed", result.detail
    print(f"{result.direction:14} {result.check:28} {result.outcome}")

# %% [markdown]
# ## A comparison
#
# Multi-query associative recall: the sequence shows pairs of keys and values, then asks for the value of
# each key. Attention looks the pair up; a recurrence must have kept it in its state. An experiment is a
# few lines of plain construction. (This one is small, with one seed; `experiments/quickstart.py` has
# more steps, more seeds and a report.)

# %%
from transformer_jax.data.tasks.associative_recall import AssociativeRecall  # noqa: E402
from transformer_jax.experiment import Experiment, Grid  # noqa: E402
from transformer_jax.model.config import Transformer  # noqa: E402
from transformer_jax.report.results import read  # noqa: E402
from transformer_jax.sweep import sweep  # noqa: E402
from transformer_jax.train.config import Train  # noqa: E402

experiment = Experiment(
    title="Recall in a notebook",
    task=AssociativeRecall(length=64, pairs=16, vocabulary=128, validation_examples=256, test_examples=256),
    model=Transformer(layers=2, width=64, mlp="none", positions="learned", convolution=3),
    variants=("full", "linear"),
    train=Train(
        steps=300,
        batch=64,
        learning_rate=8e-3,
        weight_decay=0.1,
        evaluate_every=25,
        save_every=300,
        stop_at=0.99,
    ),
    tune=Grid(seeds=1),
)
out = Path(tempfile.mkdtemp())
with contextlib.redirect_stdout(io.StringIO()):  # a line for every evaluation; the plot below shows them
    sweep(experiment, out, data=out / "data", about={"name": "notebook", "scale": "smoke", "doc": ""})

# %%
figure, axes = plt.subplots(figsize=(6, 3.5))
for cell in read(out).cells:
    lines = [line for line in cell.curve if line["split"] == "validation"]
    axes.plot([line["step"] for line in lines], [line["accuracy"] for line in lines], label=cell.label)
axes.set_xlabel("step")
axes.set_ylabel("recall accuracy")
axes.set_ylim(0, 1)
axes.legend()
figure.tight_layout()

# %% [markdown]
# To compare a mechanism of your own: write one file with a `definition`, inherit from the engine that it
# belongs to, `check` it, and add its name to `variants`.
