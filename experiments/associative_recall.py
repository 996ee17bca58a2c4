"""Associative recall against width: how wide must a model without attention be?

Zoology (arXiv:2312.04927), Figure 2, at length 64 with 4 pairs; `associative_recall_512` has its longest one.

Claim: attention recalls at every width; gated convolutions need a width that grows with the length.

Cost (single and paper are not timed yet; single is meant for an hour on one accelerator):
  smoke   five mechanisms of different families at width 64, a vocabulary of 128, 16 pairs, four rates, three
          seeds: 60 runs of at most 300 steps
  single  the published widths but the largest, 3,000 steps, four rates, three seeds
  paper   the published recipe: 64 epochs of 100,000 examples, four rates, widths 64 to 512

The source steps its cosine once per epoch, ours at each step. Recurrent models solve this task only inside a
narrow window of rates (arXiv:2508.19029), which this grid may miss: read the window, not the best point.

Expect: `full` at 1.0 at every width; the others rise with it.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.associative_recall import AssociativeRecall
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

WIDTHS = (64, 128, 256, 512)
OURS = {"full": "learned", "hyena": "none", "h3": "none", "base_conv": "none"}  # and their positions


def variants(widths: tuple[int, ...]) -> tuple[Variant, ...]:
    return tuple(
        Variant(name, f"{name}, {width}", width=width, positions=positions)
        for name, positions in OURS.items()
        for width in widths
    )


def figure(length: int, pairs: int, batch: int, values: dict[str, tuple[float, ...]]) -> Experiment:
    """One length of Figure 2. values: accuracy at each of WIDTHS."""
    steps = 64 * 100_000 // batch
    return Experiment(
        title=f"Associative recall at length {length} (Zoology, Figure 2)",
        claim="Attention recalls at every width; gated convolutions need a width that grows with the length.",
        task=AssociativeRecall(length=length, pairs=pairs, train_examples=100_000),
        model=Transformer(layers=2, mlp="none", dropout=0.1),
        variants=variants(WIDTHS),
        train=Train(
            steps=steps, batch=batch, weight_decay=0.1, clip=None, evaluate_every=steps // 64, stop_at=0.99
        ),
        tune=Grid(learning_rate=(1e-4, 4.64e-4, 2.15e-3, 1e-2), seeds=3),
        published=Table(
            source=f"arXiv:2312.04927, Figure 2, length {length}",
            tag="read off a figure",
            precision=0.02,
            selection="best of grid",
            rows={
                f"{name}, {width}": {"test": value}
                for name, row in values.items()
                for width, value in zip(WIDTHS, row, strict=True)
            },
            notes={
                f"{name}, 64": "4 layers in the public configuration until May 2024, as all but attention"
                for name in values
                if name != "full"
            },
        ),
        scales={
            "smoke": Override(
                task={
                    "length": 64,
                    "pairs": 16,
                    "vocabulary": 128,
                    "train_examples": None,
                    "validation_examples": 500,
                    "test_examples": 1000,
                },
                model={"width": 64, "dropout": 0.0, "convolution": 3},
                variants=(
                    Variant("full", "full, 64", positions="learned"),
                    *(
                        Variant(name, f"{name}, 64", positions="none")
                        for name in ("sliding_window", "linear", "gated_delta_net", "hyena")
                    ),
                ),
                train={"steps": 300, "batch": 64, "evaluate_every": 100, "clip": 1.0, "stop_at": 0.995},
                tune={"learning_rate": (1e-3, 3e-3, 5e-3, 8e-3)},
            ),
            "single": Override(
                variants=variants(WIDTHS[:3]), train={"steps": 3000, "evaluate_every": 250}, tune={"seeds": 3}
            ),
        },
    )


experiment = figure(
    length=64,
    pairs=4,
    batch=512,
    values={
        "full": (1.0, 1.0, 1.0, 1.0),
        "hyena": (0.52, 0.75, 0.84, 0.86),
        "RWKV": (0.75, 0.93, 0.96, 0.99),
        "h3": (0.92, 1.0, 0.96, 0.98),
        "base_conv": (0.70, 0.94, 0.96, 0.99),
    },
)

if __name__ == "__main__":
    run_file(__file__)
