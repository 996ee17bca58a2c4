"""A decoder of 340M parameters on TPUs that are not there: the predicted step against the length of context.

24 layers of width 1,024 with 16 heads, in bfloat16, each layer recomputed in the backward pass; full
attention, a window of 1,024 tokens, or the gated delta rule in every layer. A step has 524,288 tokens at each
length, spread over 16 chips; where there are fewer sequences than chips, each lies over several.

Nothing is trained or measured: the TPU's own compiler compiles the training step on this machine's CPU (extra
`tpu`), and the time is a model of it, compared with no measurement (`transformer_jax/planner/predict.py`).

    transformer-jax run planned_decoder --scale single --out runs/planned/v5e
    transformer-jax run planned_decoder --scale single --measure.topology v5p:2x2x4 --out runs/planned/v5p
    transformer-jax run planned_decoder --scale single --measure.topology v6e:4x4 --out runs/planned/v6e
    python -m transformer_jax.planner.lengths runs/planned/v5e runs/planned/v5p runs/planned/v6e

Landmarks know no past: `planned_encoder` has them.

Cost: a minute or two of 2 CPU cores for each mechanism, length and slice.
  smoke   two lengths, 2k and 128k tokens
  single  four lengths from 2k to 128k tokens; so is paper, as nothing of it is published

Expect: the longer the context, the more of a step is full attention; the others take the same at any length.
"""

from transformer_jax.cli import run_file
from transformer_jax.experiment import Measurement
from transformer_jax.model.config import mechanism
from transformer_jax.planner.lengths import Lengths

experiment = Measurement(
    title="A decoder of 340M parameters on TPUs, planned",
    claim="From some length on a window or a recurrence makes the step of a whole decoder shorter.",
    measure=Lengths(variants=("full", mechanism("sliding_window", window=1024), "gated_delta_net")),
    scales={"smoke": {"lengths": (2048, 131_072)}},
)

if __name__ == "__main__":
    run_file(__file__)
