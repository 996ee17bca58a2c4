"""Performer's approximation of softmax attention: which random features come nearer, and how much faster?

Rethinking attention with Performers (arXiv:2009.14794), Figure 4: length 4,096, heads of 16, 15 draws.

Claims: orthogonal features have a smaller error than independent ones; positive features a smaller one than
trigonometric ones, most where attention is small; and time grows as T, where that of attention grows as T².

The error is the mean square of the difference of the outputs; q, k and v are standard normal. The paper says
that its inputs are "appropriately normalized" and gives no numbers: the claims are what is tested here, by
comparing the estimators draw by draw on the same input.

Cost:
  smoke   the published length, head size and draws, five numbers of features; time up to 4,096 tokens
  single  also 512 features and lengths up to 16,384
  paper   as single

Expect: at smoke the positive estimate's error was 200 to 59,000 times smaller than the trigonometric one's
(reproduced at every number of features), and 33 to 71 times smaller on the smallest tenth of attention; on
the largest tenth the trigonometric estimate is the nearer one from 128 features on. Orthogonal against
independent was inconclusive at all five, for 15 draws of standard normal input vary by more than the 26%, at
most, that lie between the two.
"""

from transformer_jax.cli import run_file
from transformer_jax.experiment import Measurement
from transformer_jax.measure.approximation import Approximation

LONGER = {"features": (16, 32, 64, 128, 256, 512), "lengths": (1024, 2048, 4096, 8192, 16_384)}

experiment = Measurement(
    title="Performer: the error of random features",
    claim="Orthogonal features err less than independent ones, positive less than trigonometric ones.",
    measure=Approximation(lengths=(512, 1024, 2048, 4096)),
    scales={"single": LONGER, "paper": LONGER},
)

if __name__ == "__main__":
    run_file(__file__)
