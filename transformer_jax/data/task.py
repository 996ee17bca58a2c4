"""What a task is: parameters, shapes, where examples come from, what a trivial guesser scores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.errors import BadInput, unknown

Split = Literal["train", "validation", "test"]
Metric = Literal["accuracy", "bits_per_byte", "perplexity", "squared_error"]
SPLITS = ("train", "validation", "test")
# Seeds of the splits that are the same in every run; the seeds of runs are 0 or more, so no example is in two
# splits by construction of the seed.
FIXED_SEEDS = {"train": -1, "validation": -2, "test": -3}
LAST_STEP = 2**60  # of no run: a finite split is drawn as at the end of a curriculum

Batch = dict[str, np.ndarray]
"""inputs (B, T) int32, or (B, T, features) float32; targets int32 (float32 in a regression), (B, T) for a
"token" target and (B,) for "sequence"; weights float32 like targets (0: no loss there); optionally lengths
(B,) int32 and segments (B, T) int32."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The fields are the task's parameters; every change of one is another data set (see `fingerprint`).

    A subclass gives `vocabulary` and `outputs`, `check`, `examples_in` and, for each finite split, `rows`;
    one whose training never ends gives `examples` too (see `Generated`).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the same parameters begin to mean other examples
    target: ClassVar[Literal["token", "sequence"]] = "token"
    causal: ClassVar[bool] = True
    metric: ClassVar[Metric] = "accuracy"
    padded: ClassVar[bool] = False  # whether its batches have "lengths"

    length: int

    def __post_init__(self) -> None:
        self.whole("length")
        self.check()

    def check(self) -> None:
        """Raises BadInput where the parameters contradict each other."""

    @property
    def vocabulary(self) -> int:
        """Input ids are in [0, vocabulary)."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Classes of the prediction: the vocabulary unless the task says otherwise."""
        return self.vocabulary

    @property
    def features(self) -> int | None:
        """Where inputs are vectors and not tokens: their size (the vocabulary is then 0)."""
        return None

    def examples_in(self, split: Split) -> int | None:
        """How many examples a split has; None: endless, drawn as they are used."""
        raise NotImplementedError

    @property
    def endless(self) -> bool:
        """Whether training draws fresh examples for ever; asked before anything is read."""
        return False

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        """Examples number `indices` (B,) int64 of stream `seed`: pure, a subset equals rows of the whole.

        step: the training step that asks, for curricula.
        """
        raise BadInput(f"{self.name} is a finite data set: read its splits instead of drawing examples.")

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        """The records of a finite split in order, as stored: bytes, a number, or an array of one shape each.

        directory: where a source that is downloaded may be kept.
        """
        raise NotImplementedError

    def collate(self, columns: Batch) -> Batch:
        """Stored records, stacked (bytes as an object array), to a batch."""
        return columns

    def evaluations(self) -> dict[str, Task]:
        """Named further test sets, such as other lengths."""
        return {}

    def specification(self, batch: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> shape and kind of the arrays of a batch of training, without drawing or reading one."""
        inputs = (batch, self.length) + ((self.features,) if self.features else ())
        targets = (batch, self.length) if self.target == "token" else (batch,)
        found: dict[str, tuple[tuple[int, ...], type]] = {
            "inputs": (inputs, np.float32 if self.features else np.int32),
            "targets": (targets, np.float32 if self.metric == "squared_error" else np.int32),
            "weights": (targets, np.float32),
        }
        return found | ({"lengths": ((batch,), np.int32)} if self.padded else {})

    @property
    def longest(self) -> int:
        """The longest input of the task and of its evaluations: what a model must be able to take."""
        return max([self.length, *(task.length for task in self.evaluations().values())])

    def encode(self, text: str) -> np.ndarray:
        """Token ids (T,) of what a user writes: here the ids themselves, with spaces between."""
        try:
            return np.array([int(word) for word in text.split()], np.int64)
        except (ValueError, OverflowError):
            raise BadInput(f"{self.name} reads token ids with spaces between, such as '3 1 4'.") from None

    def decode(self, tokens: np.ndarray) -> str:
        """What a user reads for token ids (T,); the inverse of `encode`."""
        return " ".join(map(str, tokens.tolist()))

    def parameters(self) -> dict[str, Any]:
        """What decides the examples, as JSON values; a source outside the program enters by its content."""
        return {"task": self.name, "version": self.version, **dataclasses.asdict(self)}

    def fingerprint(self) -> str:
        """A hash of `parameters`: equal fingerprints mean equal examples."""
        text = json.dumps(self.parameters(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """The headline metric on the test split of guessers that learn little or nothing."""
        raise NotImplementedError

    def baselines(self, directory: Path) -> dict[str, float]:
        """`measure_baselines`, measured once and kept under `directory`."""
        from transformer_jax.data.builders import remembered

        return remembered(self, directory, "baselines", lambda: self.measure_baselines(directory))

    def whole(self, field: str, at_least: int = 1) -> None:
        """Refuses a field that is no whole number or is too small."""
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput(f"{self.name}: {field} must be a whole number, not {value!r}.")
        if value < at_least:
            raise BadInput(f"{self.name}: {field} is {value}; it must be at least {at_least}.")

    def one_of(self, field: str, choices: Sequence[str]) -> None:
        """Refuses a field that is none of the choices."""
        if getattr(self, field) not in choices:
            raise unknown(f"{field} of {self.name}", str(getattr(self, field)), choices)


@dataclass(frozen=True, kw_only=True)
class Generated(Task):
    """A task whose examples come from arithmetic alone (`examples`).

    train_examples: None draws fresh examples at every step from the run's seed; a number gives a finite
    training set, which like validation and test is the same for every run seed (the seed then decides the
    order only).
    """

    train_examples: int | None = None
    validation_examples: int = 1000
    test_examples: int = 1000

    def __post_init__(self) -> None:
        for field in ("validation_examples", "test_examples"):
            self.whole(field)
        if self.train_examples is not None:
            self.whole("train_examples")
        super().__post_init__()

    @property
    def endless(self) -> bool:
        return self.train_examples is None

    def examples_in(self, split: Split) -> int | None:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return getattr(self, f"{split}_examples")

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        count = self.examples_in(split)
        assert count is not None
        block = max(1, 2**20 // self.length)
        for start in range(0, count, block):
            batch = self.examples(FIXED_SEEDS[split], np.arange(start, min(start + block, count)), LAST_STEP)
            yield from self.records(batch)

    def records(self, batch: Batch) -> Iterator[Mapping[str, Any]]:
        """The rows of a batch as stored: ids in as few bytes as they need, so that more fits in memory."""
        kind = np.min_scalar_type(max(self.vocabulary, self.outputs) - 1)
        for name in ("inputs", "targets"):
            if np.issubdtype(batch[name].dtype, np.integer):
                batch = {**batch, name: batch[name].astype(kind)}
        for row in range(len(batch["inputs"])):
            yield {name: value[row] for name, value in batch.items()}

    def collate(self, columns: Batch) -> Batch:
        ids = ("inputs", "targets")
        return {
            name: value.astype(np.int32) if name in ids and np.issubdtype(value.dtype, np.integer) else value
            for name, value in columns.items()
        }

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """`guesses`, and counts fitted on validation (training may be endless), scored on the test split."""
        from transformer_jax.data import baselines, builders

        known, test = (builders.read(self, split, directory).all() for split in ("validation", "test"))
        found = {**self.guesses(), "majority": baselines.majority_accuracy(known, test)}
        if self.target == "token":
            found["bigram"] = baselines.bigram_accuracy(known, test)
        return found

    def guesses(self) -> dict[str, float]:
        """Accuracies that follow from the task's definition."""
        raise NotImplementedError
