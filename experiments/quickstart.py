"""Quickstart: which attention mechanisms can recall?

Multi-query associative recall (Zoology, arXiv:2312.04927): a sequence shows pairs of keys and values,
then asks for the value of each key. Attention looks it up; a mechanism with a small state must have
kept it.

Claim: full attention learns to recall within a few hundred steps; mechanisms with a small state do not
in this time, and some never do (a window forgets what has left it, elu + 1 features mix all keys).

Cost:
  smoke   8 runs of at most 300 steps, minutes on 2 CPU cores, compilation included
  single  256 tokens, 32 pairs, four learning rates, three seeds: under an hour on one accelerator
  paper   the column of length 64 and width 64 of Figure 2, as published

Expect at smoke: `full` above 0.99 on both seeds after 250 steps; the others at most 0.06, what guessing
among the 16 values shown gives. That `gated_delta_net` fails here says that 300 steps at one rate are too
few for it, no more: the Zoology repository's plot has it recall with enough state and training, and
`single` gives it both.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

experiment = Experiment(
    title="Quickstart: associative recall",
    claim="Full attention learns to recall at once; mechanisms with a small state do not in this time.",
    task=AssociativeRecall(length=64, pairs=16, vocabulary=128, validation_examples=500, test_examples=1000),
    model=Transformer(layers=2, width=64, mlp="none", positions="learned", convolution=3),
    variants=("full", Variant("sliding_window", window=16), "linear", "gated_delta_net"),
    train=Train(steps=300, batch=64, learning_rate=8e-3, weight_decay=0.1, evaluate_every=50, stop_at=0.995),
    tune=Grid(seeds=2),
    published=Table(
        source="arXiv:2312.04927, Figure 2, length 64, width 64",
        tag="read off a figure",
        precision=0.02,
        selection="best of grid",
        rows={
            "full": {"test": 1.0},
            "Hyena": {"test": 0.52},
            "RWKV": {"test": 0.75},
            "H3": {"test": 0.92},
            "BaseConv": {"test": 0.70},
        },
        notes={"Hyena": "4 layers in the public configuration until May 2024, as RWKV, H3 and BaseConv"},
    ),
    scales={
        "single": Override(
            task={"length": 256, "pairs": 32, "vocabulary": 8192},
            model={"width": 128},
            train={"steps": 5000, "batch": 256, "evaluate_every": 250},
            tune={"learning_rate": (4.64e-4, 1e-3, 2.15e-3, 4.64e-3), "seeds": 3},
        ),
        "paper": Override(
            task={"pairs": 4, "vocabulary": 8192, "train_examples": 100_000, "test_examples": 3000},
            model={"convolution": 0, "dropout": 0.1},
            train={"steps": 12_500, "batch": 512, "clip": None, "evaluate_every": 195, "stop_at": 0.99},
            tune={"learning_rate": (1e-4, 4.64e-4, 2.15e-3, 1e-2), "seeds": 3},
        ),
    },
)

if __name__ == "__main__":
    run_file(__file__)
