"""Long Range Arena, Text: the sentiment of film reviews, byte by byte; eleven bidirectional mechanisms.

Long Range Arena (arXiv:2011.04006). Its numbers stand here for orientation, and no verdict is given: the
original chose its settings on the test set, where a tenth of the training reviews is held out here, and the
training recipe is one for all mechanisms.

Claim: on this task most mechanisms end within a few points of each other; the question is which do
not, and what each costs.

Cost:
  smoke   the first 256 bytes, a model of 2 layers; 33 runs, each scored on 2,000 of the test reviews: not
          timed as a whole yet
  single  the first 1,024 bytes, 4 layers of width 256: under an hour on one accelerator
  paper   4,096 bytes, 4 layers of width 256, 20,000 steps of batch 32: the size of the original

The reviews are downloaded once (84 MB); --task.archive FILE takes an aclImdb_v1.tar.gz that is there.

Expect at smoke: a little above chance, as long as the counts of bytes alone say (see the baselines);
at single about 0.6 to 0.65.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.imdb import Imdb
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

experiment = Experiment(
    title="Long Range Arena: Text (IMDb reviews as bytes)",
    claim="Which bidirectional mechanisms read a long text of bytes, and at what cost?",
    task=Imdb(length=1024),
    model=Transformer(layers=4, width=256, heads=4, dropout=0.1, embeddings="untied"),
    variants=(
        "full",
        "sliding_window",
        "bigbird",
        "linear",
        "performer",
        "retention",
        "gated_delta_net",
        "linformer",
        "window_and_linear",
        "mamba",
        Variant("fnet", norm_position="post"),  # as its paper: it is not scaled, and a norm must follow
    ),
    train=Train(steps=5000, batch=32, weight_decay=0.1, warmup=500, evaluate_every=500),
    tune=Grid(learning_rate=(1e-4, 3e-4), seeds=3),
    published=Table(
        source="arXiv:2011.04006, Table 1, Text",
        tag="exact",
        precision=0.00005,
        comparable_at=(),
        rows={
            "full": {"test": 0.6427},
            "sliding_window": {"test": 0.5298},
            "bigbird": {"test": 0.6402},
            "linear": {"test": 0.6590},
            "performer": {"test": 0.6540},
            "linformer": {"test": 0.5394},
            "Sparse Transformer": {"test": 0.6358},
            "Longformer": {"test": 0.6285},
            "Reformer": {"test": 0.5610},
            "Sinkhorn": {"test": 0.6120},
            "Synthesizer": {"test": 0.6168},
        },
        notes={"sliding_window": "the source's local attention cuts the text into blocks"},
    ),
    scales={
        "smoke": Override(
            task={"length": 256, "test_examples": 2000},
            model={"layers": 2, "width": 64, "heads": 2},
            train={
                "steps": 200,
                "learning_rate": 1e-3,
                "warmup": 20,
                "evaluate_every": 100,
                "evaluation_examples": 1000,
            },
            tune={"learning_rate": ()},
            # At 256 tokens blocks of 64 would make BigBird full attention.
            variants=(
                "full",
                Variant("sliding_window", window=32),
                Variant("bigbird", block=16),
                "linear",
                "performer",
                "retention",
                "gated_delta_net",
                "linformer",
                Variant("window_and_linear", window=32),
                "mamba",
                Variant("fnet", norm_position="post"),
            ),
        ),
        "paper": Override(
            task={"length": 4096},
            train={"steps": 20_000, "warmup": 2000, "evaluate_every": 2000},
            tune={"learning_rate": (1e-4, 3e-4, 1e-3)},
        ),
    },
)

if __name__ == "__main__":
    run_file(__file__)
