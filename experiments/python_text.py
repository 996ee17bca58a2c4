"""Byte-level language modelling on real text that every machine has: Python's standard library.

Eleven causal mechanisms, of every family, the same model around each, bits per byte on files that were not
trained on, beside what counting bytes and what gzip and lzma reach.

Claim: none is published. The question is what a mechanism costs in quality when all else is equal.

Cost:
  smoke   a model of 2 layers, contexts of 256 bytes; 33 runs, of which one of `full` takes 1 minute on
          2 CPU cores
  single  6 layers of width 512, contexts of 1,024 bytes: under an hour on one accelerator
  paper   12 layers of width 768, contexts of 2,048 bytes, the size at which papers begin to report
          language models; the text has 10 MB, so this goes over it many times

Expect: at smoke, 200 steps, the mean of three seeds on the test files of Python 3.11 was 2.64 bits per byte
for gated_delta_net, which brings its own convolution, 2.89 to 3.07 for sliding_window, bigbird, full and
retention, and 3.53 and 3.87 for performer and linear, no better than the bigram baseline of 3.53. Scores
hold within one version of Python, whose library is the text.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.python_text import PythonText
from transformer_jax.experiment import Experiment, Grid, Override, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

experiment = Experiment(
    title="Python text: bits per byte",
    claim="What does a mechanism cost in quality when all else is equal?",
    task=PythonText(length=1024),
    model=Transformer(
        layers=6, width=512, heads=8, mlp="swiglu", norm="rms", positions="rotary", compute="bfloat16"
    ),
    variants=(
        "full",
        "sliding_window",
        "bigbird",
        "linear",
        "performer",
        "retention",
        "gated_delta_net",
        "window_and_linear",
        "mamba",
        "hyena",
        "lstm",
    ),
    train=Train(steps=2000, batch=32, weight_decay=0.1, b2=0.95, warmup=200, evaluate_every=250),
    tune=Grid(learning_rate=(5e-4, 1.5e-3), seeds=3),
    scales={
        "smoke": Override(
            task={"length": 256},
            model={"layers": 2, "width": 128, "heads": 4, "compute": "float32"},
            train={
                "steps": 200,
                "batch": 16,
                "learning_rate": 3e-3,
                "warmup": 20,
                "evaluate_every": 100,
                "evaluation_examples": 256,
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
                Variant("window_and_linear", window=32),
                "mamba",
                "hyena",
                "lstm",
            ),
        ),
        "paper": Override(
            task={"length": 2048},
            model={"layers": 12, "width": 768, "heads": 12, "dropout": 0.1, "remat": "full"},
            train={"steps": 10_000, "batch": 64, "warmup": 1000, "evaluate_every": 1000},
            tune={"learning_rate": (3e-4, 6e-4, 1.2e-3)},
        ),
    },
)

if __name__ == "__main__":
    run_file(__file__)
