"""Performer's approximation of softmax attention: which random features come nearer, and how much faster?

Rethinking attention with Performers (arXiv:2009.14794), Figure 4: length 4,096, heads of 16, 15 draws.

Claims: orthogonal features have a smaller error than independent ones; positive features a smaller one than
trigonometric ones, most where attention is small; and time grows as T, where that of attention grows as T².

The error is the mean square of the difference of the outputs; q, k and v are normal. The paper says that its
inputs are "appropriately normalized" and gives no numbers: the claims are what is tested here, by comparing
the estimators draw by draw on the same input.

Which of the claims hold depends on the scale of queries and keys, which the paper does not give: it is
measure.spread, the standard deviation of their entries, 1 unless set (--measure.spread 0.5).

Cost:
  smoke   the published length, head size and draws, five numbers of features; time up to 4,096 tokens
  single  also 512 features and lengths up to 16,384
  paper   as single

Expect, by the spread:
  1    the positive estimate's error is 200 to 59,000 times smaller than the trigonometric one's (reproduced
       at every number of features), and 33 to 71 times on the smallest tenth of attention; on the largest
       tenth the trigonometric one is nearer from 128 features on. Orthogonal against independent is
       inconclusive at all five, for 15 draws vary by more than the 26%, at most, that lie between the two.
  0.7  mixed
  0.5  the trigonometric error is the smaller one, 3.6 times at 16 features and 9 times at 256, so that the
       second claim does not reproduce; and the first does, with trigonometric features: the error of
       orthogonal ones is 0.2 to 0.4 of that of independent ones
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
