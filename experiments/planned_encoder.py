"""An encoder of 300M parameters on TPUs that are not there: landmarks beside full attention, by length.

The model of `planned_decoder`, 24 layers of width 1,024, as an encoder that restores masked bytes; full
attention, or Nyströmformer's 256 landmarks (arXiv:2102.03902) in every layer. How it is planned, and what a
planned time is worth, is said there.

    transformer-jax run planned_encoder --scale single --out runs/encoder/v5e
    transformer-jax run planned_encoder --scale single --measure.topology v5p:2x2x4 --out runs/encoder/v5p
    transformer-jax run planned_encoder --scale single --measure.topology v6e:4x4 --out runs/encoder/v6e

Cost: a minute or two of 2 CPU cores for each mechanism, length and slice.
  smoke   two lengths, 2k and 128k tokens
  single  four lengths from 2k to 128k tokens; so is paper, as nothing of it is published

Expect: twice the pairs of a decoder, so that landmarks pay from a shorter length on.
"""

from transformer_jax.cli import run_file
from transformer_jax.experiment import Measurement
from transformer_jax.model.config import mechanism
from transformer_jax.planner.lengths import Lengths

experiment = Measurement(
    title="An encoder of 300M parameters on TPUs, planned",
    claim="From some length on landmarks make the step of a whole encoder shorter.",
    measure=Lengths(causal=False, variants=("full", mechanism("nystrom", landmarks=256))),
    scales={"smoke": {"lengths": (2048, 131_072)}},
)

if __name__ == "__main__":
    run_file(__file__)
