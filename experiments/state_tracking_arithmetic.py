"""State tracking: modular arithmetic without brackets, at lengths never seen.

Unlocking State-Tracking (arXiv:2411.12537), Table 3, second column; mechanisms and scales as for
`state_tracking`, with the 3 layers and the batch of 1,024 that the authors name for this task. Cost: smoke
takes minutes on 2 CPU cores; single and paper are not timed yet.

Expect: DeltaNet [−1, 1] above [0, 1], both above attention, whose accuracy is near chance, 0.2.
"""

from state_tracking import comparison, published

from transformer_jax.cli import run_file
from transformer_jax.data.tasks.modular_arithmetic import ModularArithmetic

experiment = comparison(
    ModularArithmetic(),
    "State tracking: modular arithmetic",
    published(column=1, chance=0.2),
    layers=3,
    batch=1024,
)

if __name__ == "__main__":
    run_file(__file__)
