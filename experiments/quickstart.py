"""Quickstart: which attention mechanisms can recall?

Multi-query associative recall (Zoology, arXiv:2312.04927): a sequence shows pairs of keys and values,
then asks for the value of each key. Attention looks it up; a mechanism with a small state must have
kept it.

Claim: full attention recalls perfectly; linear attention (elu + 1) does not; a delta rule repairs that.

Cost:
  smoke   8 runs, under 4 minutes on 2 CPU cores, compilation included
  single  longer sequences, more pairs, a tuning grid, three seeds: under an hour on one accelerator
  paper   the row (64, 4) of Figure 2 as published, at width 64 (attention: 1.0)

Expect at smoke: `full` above 0.99; `linear` far below; `sliding_window` recalls what lies within its
window only.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

experiment = Experiment(
    title="Quickstart: associative recall",
    claim="Full attention recalls perfectly, linear attention does not, and a delta rule repairs that.",
    task=AssociativeRecall(length=64, pairs=16, vocabulary=128, validation_examples=500, test_examples=1000),
    model=Transformer(layers=2, width=64, mlp="none", positions="learned", convolution=3),
    variants=("full", Variant("sliding_window", window=16), "linear", "gated_delta_net"),
    train=Train(steps=400, batch=64, learning_rate=5e-3, weight_decay=0.1, evaluate_every=50, stop_at=0.995),
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
