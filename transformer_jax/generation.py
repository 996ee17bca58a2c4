"""Text from a trained model, with its speed: what the command `generate` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from transformer_jax import checkpoint
from transformer_jax.errors import BadInput
from transformer_jax.model.decode import Sampling, continuation, pad_prompts
from transformer_jax.model.transformer import Model
from transformer_jax.train.run import Run, build_model, load_run
from transformer_jax.train.state import dismantle


@dataclass(frozen=True, kw_only=True)
class Generate(Sampling):
    """What to write, and how its tokens are drawn (see `Sampling`: temperature, top_k, top_p).

    Attributes:
      run: a run directory, as `run` leaves them under cells/.
      prompt: the text to continue, in the task's own writing (text, or token ids with spaces).
      count: tokens to write. batch: how many continuations of the prompt. seed: of the draws.
    """

    run: Path
    prompt: str = ""
    count: int = 200
    batch: int = 1
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.batch < 1:
            raise BadInput(f"batch={self.batch} must be at least 1: how many continuations to write.")


@dataclass(frozen=True)
class Written:
    """The prompt with its continuations, and how fast they came: compilation is timed apart."""

    texts: list[str]
    tokens_per_second: float
    compile_seconds: float
    prefill_seconds: float


def trained(directory: Path) -> tuple[Run, Model]:
    """The run of a directory and its model with the newest checkpoint that is sound.

    Raises BadInput where there is no run or no checkpoint.
    """
    run = load_run(directory)
    skeleton, params, rest = dismantle(build_model(run))
    like = {"model": {"params": params, "rest": rest}}
    stored = checkpoint.restore_latest(directory / "checkpoints", like).parts["model"]
    return run, skeleton.assemble(stored["params"], stored["rest"])


def generate(request: Generate) -> Written:
    """Continues the prompt. Raises BadInput as `trained` and `pad_prompts` do."""
    run, model = trained(request.run)
    prompt = run.task.encode(request.prompt)
    tokens, lengths = pad_prompts(model, [prompt] * request.batch, request.count)
    values, prefill, write = continuation(model, request.count, request)
    begin = time.perf_counter()
    first = prefill.lower(values, tokens, lengths).compile()
    compiling = time.perf_counter() - begin
    (logits, state), prefilling = _timed(lambda: first(values, tokens, lengths))
    key = jax.random.key(request.seed)
    begin = time.perf_counter()
    then = write.lower(values, logits, state, key).compile()
    compiling += time.perf_counter() - begin
    written, seconds = _timed(lambda: then(values, logits, state, key))
    return Written(
        texts=[run.task.decode(np.concatenate([prompt, row])) for row in np.asarray(written)],
        tokens_per_second=written.size / seconds,
        compile_seconds=compiling,
        prefill_seconds=prefilling,
    )


def _timed(run: Callable):
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - begin
