"""State tracking: parity at lengths never seen.

Unlocking State-Tracking (arXiv:2411.12537), Table 3: strings of 3 to 40 bits train, of 40 to 256 test.

Claim: a linear recurrence whose transitions have eigenvalues in [0, 1] cannot count modulo two; with [−1,
1] it can. Attention cannot either; a nonlinear recurrence can.

Cost (single and paper are not timed yet; single is meant for an hour on one accelerator):
  smoke   strings of up to 16 bits, tested up to 64, four mechanisms, two seeds: minutes on 2 CPU cores
  single  the published recipe with 5,000 steps, three rates, three seeds
  paper   the published recipe: 20,000 steps of batch 256

Expect: full and DeltaNet [0, 1] at chance, 0.5, on longer strings; DeltaNet [−1, 1] and the LSTM, where it
trains, at 1.0.
"""

from transformer_jax.cli import run_file
from transformer_jax.data.task import Task
from transformer_jax.data.tasks.parity import Parity
from transformer_jax.experiment import Experiment, Grid, Override, Table, Variant
from transformer_jax.model.config import Transformer
from transformer_jax.train.config import Train

SMOKE = (
    "full",
    Variant("delta_net", "DeltaNet [0, 1]", beta_max=1.0),
    Variant("delta_net", "DeltaNet [-1, 1]", beta_max=2.0),
    "lstm",
)
SOURCE = {  # parity, and modular arithmetic without brackets: accuracy scaled so that chance is 0
    "full": (0.022, 0.031),
    "mlstm": (0.087, 0.040),
    "slstm": (1.0, 0.787),
    "mamba": (0.0, 0.095),
    "Mamba [-1, 1]": (1.0, 0.241),
    "DeltaNet [0, 1]": (0.017, 0.314),
    "DeltaNet [-1, 1]": (1.0, 0.971),
}


def published(column: int, chance: float) -> Table:
    """A column of the source as plain accuracies."""
    return Table(
        source="arXiv:2411.12537, Table 3, as plain accuracies: the source scales them so that chance is 0",
        tag="single source",
        precision=0.0005 * (1 - chance),
        rows={name: {"test/40-256": chance + (1 - chance) * row[column]} for name, row in SOURCE.items()},
    )


def comparison(task: Task, title: str, table: Table, *, layers: int, batch: int) -> Experiment:
    """The same mechanisms on one of the tasks."""
    return Experiment(
        title=title,
        claim="A linear recurrence tracks a state only if its transitions have negative eigenvalues.",
        task=task,
        model=Transformer(
            layers=layers, width=128, heads=4, positions="none", convolution=4, embeddings="untied"
        ),
        variants=(*SMOKE, "mlstm", "slstm", "mamba"),
        train=Train(
            steps=20_000, batch=batch, learning_rate=1e-3, warmup=2000, evaluate_every=1000, log_every=200
        ),
        tune=Grid(seeds=3),
        published=table,
        scales={
            "smoke": Override(
                task={"length": 16, "test_from": 16, "test_to": 64, "test_examples": 1000},
                model={"layers": 1, "width": 64, "heads": 2},
                variants=SMOKE,
                train={"steps": 800, "batch": 64, "learning_rate": 3e-3, "warmup": 80, "evaluate_every": 200},
                tune={"seeds": 2},
            ),
            "single": Override(
                train={"steps": 5000, "warmup": 500, "stop_at": 0.9999},
                tune={"learning_rate": (3e-4, 1e-3, 3e-3)},
            ),
        },
    )


experiment = comparison(
    Parity(), "State tracking: parity", published(column=0, chance=0.5), layers=2, batch=256
)

if __name__ == "__main__":
    run_file(__file__)
