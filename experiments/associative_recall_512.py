"""Associative recall at length 512 with 64 pairs: the longest of Zoology's Figure 2 (arXiv:2312.04927).

Mechanisms, scales (smoke, single, paper) and what is to be known of the recipe: see `associative_recall`. Its
smoke is that of length 64; paper has 50,000 steps of batch 128.

Expect: `full` at 1.0 at every width; the others near chance up to a width of 256.
"""

from associative_recall import figure

from transformer_jax.cli import run_file

experiment = figure(
    length=512,
    pairs=64,
    batch=128,
    values={
        "full": (1.0, 1.0, 1.0, 1.0),
        "hyena": (0.01, 0.03, 0.09, 0.17),
        "RWKV": (0.01, 0.02, 0.15, 0.37),
        "h3": (0.01, 0.02, 0.02, 0.09),
        "base_conv": (0.01, 0.02, 0.05, 0.71),
    },
)

if __name__ == "__main__":
    run_file(__file__)
