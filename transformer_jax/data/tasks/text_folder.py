"""The user's own text: a folder of files, as bytes or as subwords."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transformer_jax.data.task import SPLITS, Metric, Split
from transformer_jax.data.tasks.python_text import PythonText
from transformer_jax.data.text import Text
from transformer_jax.errors import BadInput, unknown

SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}


@dataclass(frozen=True, kw_only=True)
class TextFolder(Text):
    """The text of a folder's files, byte by byte.

    Of each file the first 90% is for training, the next 5% for validation, the last 5% for the test; the
    parts follow one another in the order of their paths. So one long file will do, and many short ones too.
    The text counts by its content, not by its place.

    folder: where the files lie, those of its folders included. files: which of them, a pattern.
    """

    name: ClassVar[str] = "text_folder"

    folder: str
    files: str = "*.txt"

    def check(self) -> None:
        if not Path(self.folder).is_dir():
            raise BadInput(f"{self.name}: there is no folder {self.folder}; point task.folder at your text.")

    def texts(self) -> tuple[bytes, ...]:
        """The files' contents, in the order of their paths."""
        return _texts(self.folder, self.files)

    def documents(self, split: Split, directory: Path) -> Iterator[bytes]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return _part(self.texts(), split)

    def examples_in(self, split: Split) -> int:
        tokens = sum(len(self.tokens(document)) for document in self.documents(split, Path()))
        if tokens <= self.length:
            raise BadInput(
                f"{self.name}: the {split} split has {tokens} tokens, too few for a window of length "
                f"{self.length}; choose a smaller length, or give more text."
            )
        return (tokens - 1) // self.length

    def parameters(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in self.texts():
            digest.update(hashlib.sha256(text).digest())
        return {**super().parameters(), "folder": digest.hexdigest()}


@dataclass(frozen=True, kw_only=True)
class SubwordFolder(TextFolder):
    """The text of a folder's files in subwords; without a folder that of Python's library, as `python_text`.

    They are merged byte pairs, which sentencepiece learns from the training split, on the spot. The encoding
    of valid UTF-8 loses nothing: spaces and line ends are kept as they are, and what the vocabulary lacks is
    written in bytes. Perplexity is per subword: compare scores of one text and one vocabulary only.
    Needs the extra `subwords`.
    """

    name: ClassVar[str] = "subword_folder"
    metric: ClassVar[Metric] = "perplexity"

    folder: str | None = None  # type: ignore[assignment]
    vocabulary: int = 4096  # type: ignore[assignment]

    def check(self) -> None:
        if self.folder is not None:
            super().check()
        self.whole("vocabulary", at_least=300)

    def documents(self, split: Split, directory: Path) -> Iterator[bytes]:
        if self.folder is None:
            return PythonText(length=self.length).documents(split, directory)
        return super().documents(split, directory)

    def tokenizer(self) -> Any:
        """The sentencepiece processor. BadInput where it is not installed, or the text is too short."""
        return _tokenizer(self)

    def tokens(self, document: bytes) -> np.ndarray:
        tokenizer = self.tokenizer()
        ids = tokenizer.encode(document.decode(errors="replace"))
        return np.array([*ids, tokenizer.eos_id()], np.int32)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer().encode(text), np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return self.tokenizer().decode(tokens.tolist())

    def parameters(self) -> dict[str, Any]:
        if self.folder is None:
            text = {**PythonText(length=self.length).parameters(), **Text.parameters(self)}
        else:
            text = super().parameters()
        return {**text, "sentencepiece": _sentencepiece().__version__}

    def measure_baselines(self, directory: Path) -> dict[str, float]:
        """Perplexity on the test split of equal probabilities, and of a subword's frequency plus one."""
        from transformer_jax.data import builders

        train, test = (builders.read(self, split, directory).columns()["text"] for split in ("train", "test"))
        counts = np.bincount(train[:, 1:].reshape(-1), minlength=self.vocabulary) + 1.0
        loss = -np.log(counts / counts.sum())[test[:, 1:]].mean()
        return {"uniform": float(self.vocabulary), "unigram": float(np.exp(loss))}


@functools.lru_cache(maxsize=4)
def _texts(folder: str, pattern: str) -> tuple[bytes, ...]:
    paths = sorted(path for path in Path(folder).rglob(pattern) if path.is_file())
    try:
        texts = tuple(path.read_bytes() for path in paths)
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read ({error.strerror}); make it readable.") from None
    if not any(texts):
        raise BadInput(f"No text in files {pattern} of {folder}; set task.files to the pattern of yours.")
    return texts


def _part(texts: tuple[bytes, ...], split: Split) -> Iterator[bytes]:
    begin, end = SHARES[split]
    return (text[int(begin * len(text)) : int(end * len(text))] for text in texts)


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise BadInput(
            'Subwords need sentencepiece: install "transformer_jax[subwords]", or take task text_folder.'
        ) from None
    return sentencepiece


@functools.lru_cache(maxsize=2)
def _tokenizer(task: SubwordFolder) -> Any:
    sentencepiece, model = _sentencepiece(), io.BytesIO()
    documents = task.documents("train", Path())
    lines = (line for document in documents for line in document.decode(errors="replace").splitlines())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=task.vocabulary,
            model_type="bpe",
            byte_fallback=True,
            # Nothing of the text may be lost or added.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=["\n"],
            max_sentence_length=2**20,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise BadInput(
            f"A vocabulary of {task.vocabulary} subwords cannot be learned from this text "
            f"({str(error).splitlines()[-1]}); lower task.vocabulary, or give more text."
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
