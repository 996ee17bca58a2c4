"""Recall against the size of the state: what does a byte of memory buy?

The Zoology repository's plot after Based (arXiv:2402.18668): associative recall in a mix of lengths, tested
from 64 tokens with 4 pairs to 1,024 with 256; the score is the mean over the seven tests.

Claim: recall costs state. Attention, whose state grows with the text, has it all; among fixed states the
delta rule recalls most per byte.

Cost (single and paper are not timed yet; single is meant for an hour on one accelerator):
  smoke   lengths 32 and 64, a vocabulary of 128, four mechanisms, two seeds: minutes on 2 CPU cores
  single  the published data at 3,000 steps, four rates, three seeds
  paper   the published recipe: 32 epochs of 180,000 examples, batch 256, four rates

The state of each variant is counted by the program and stands in the report. The source reads its states off
another count (bytes at float32), so its rows are named by their bytes and compared by eye. Its convolution is
gated, ours is not; it fills a batch with one length, ours mixes lengths within.

Expect: more state, more recall, within every mechanism; full attention at the top.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.recall_mix import RecallMix
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

PLOT = {  # accuracy at bytes of state
    "sliding window": ((0.31, 3.4e4), (0.66, 1.3e5), (0.94, 5.2e5)),
    "DeltaNet": ((0.79, 9e3), (0.96, 3.4e4), (0.995, 1.3e5)),
    "Gated DeltaNet": ((0.89, 1.7e4), (0.99, 6.6e4)),
    "GLA": ((0.77, 1.8e4), (0.95, 6.8e4)),
    "Based": ((0.67, 9e3), (0.84, 2.5e4), (0.98, 8e4)),
    "RWKV-7": ((0.82, 1.7e4), (0.91, 1.3e5)),
    "Mamba": ((0.70, 1.6e4), (0.85, 1e5)),
    "Mamba-2": ((0.73, 2.5e4), (0.84, 1e5)),
}


def at_widths(name: str, *widths: int, **settings) -> tuple[Variant, ...]:
    return tuple(Variant(name, f"{name}, {width}", width=width, **settings) for width in widths)


experiment = Experiment(
    title="Recall against state size",
    claim="Recall costs state; among fixed states the delta rule recalls most per byte.",
    task=RecallMix(train_examples=180_000),
    model=Transformer(layers=2, mlp="none", positions="none", convolution=3),
    variants=(
        *at_widths("full", 64, 128),
        *(Variant("sliding_window", f"sliding_window, {w}", window=w, width=128) for w in (16, 64, 256)),
        *at_widths("delta_net", 64, 128, 256, heads=2),
        *at_widths("gated_delta_net", 64, 128, 256, heads=2),
        *at_widths("gated_linear_attention", 64, 128, 256, heads=2),
        *at_widths("based_taylor", 64, 128),
        *at_widths("rwkv7", 64, 128, 256, heads=2),
        *at_widths("mamba", 64, 128, 256),
        *at_widths("mamba2", 64, 128, 256),
    ),
    train=Train(
        steps=22_500,
        batch=256,
        weight_decay=0.1,
        clip=None,
        evaluate_every=2250,
        evaluation_batch=32,
    ),
    tune=Grid(learning_rate=(1e-3, 3.16e-3, 1e-2, 3.16e-2), seeds=3),
    published=Table(
        source="the Zoology repository's plot, after arXiv:2402.18668",
        tag="read off a figure",
        precision=0.02,
        selection="best of grid",
        rows={"full, 64": {"test": 1.0}}
        | {
            f"{name} at {size:.1e} B": {"test": accuracy}
            for name, row in PLOT.items()
            for accuracy, size in row
        },
        notes={"full, 64": "at 5.2e5 B"},
    ),
    scales={
        "smoke": Override(
            task={
                "length": 64,
                "mix": ((32, 4, 1), (64, 8, 1)),
                "tests": ((32, 4), (32, 8), (64, 8), (64, 16)),
                "vocabulary": 128,
                "train_examples": None,
                "validation_examples": 200,
                "test_examples": 1000,
            },
            variants=(
                Variant("full", "full, 64"),
                Variant("sliding_window", window=8),
                Variant("gated_delta_net", heads=2),
                "mamba",
            ),
            train={"steps": 400, "batch": 64, "evaluate_every": 200, "clip": 1.0, "learning_rate": 5e-3},
            tune={"learning_rate": (), "seeds": 2},
        ),
        "single": Override(train={"steps": 3000, "evaluate_every": 500}),
    },
)

if __name__ == "__main__":
    run_file(__file__)
