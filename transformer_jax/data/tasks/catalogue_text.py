"""Language modelling by bytes on the texts that papers report, from the TFDS catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from transformer_jax.data import catalogue
from transformer_jax.data.task import SPLITS, Split
from transformer_jax.data.text import Text
from transformer_jax.errors import BadInput, unknown

Corpus = Literal["lm1b", "wiki40b", "pg19", "lambada", "c4"]
NAMES = {"wiki40b": "wiki40b/en", "c4": "c4/en"}
# The catalogue's part that is the test split; the other two are its own, or carved from its training part.
TEST = {"c4": "validation"}
OWN_VALIDATION = ("wiki40b", "pg19", "lambada")


@dataclass(frozen=True, kw_only=True)
class CatalogueText(Text):
    """lm1b (Chelba et al. 2013), wiki40b (English, with its layout marks), pg19, lambada or c4 as bytes.

    wiki40b, pg19 and lambada come with three splits. lm1b and c4 have two: the hundredth of the training
    documents whose sha256 is smallest is held out for validation, and c4's validation part, on which papers
    report, is the test split. Documents come in the catalogue's own order, which is random.
    lambada's training text are whole novels; a score on its test passages is of every byte, not of the last
    word alone, so no published number compares.
    The catalogue makes c4 with Apache Beam only, and wiki40b from files that need TensorFlow: prepare these
    elsewhere, as array_record, and put them in the folder `tfds` of the data directory.

    megabytes: how much text at most is taken for training; for validation and test held_out_megabytes each.
    """

    name: ClassVar[str] = "catalogue_text"

    corpus: Corpus = "lm1b"
    megabytes: int = 100
    held_out_megabytes: int = 2

    def check(self) -> None:
        self.one_of("corpus", get_args(Corpus))
        self.whole("megabytes")
        self.whole("held_out_megabytes")

    def examples_in(self, split: Split) -> int:
        raise BadInput(f"{self.name}: how many windows there are is known once the {split} split is read.")

    def documents(self, split: Split, directory: Path) -> Iterator[bytes]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        left = 1_000_000 * (self.megabytes if split == "train" else self.held_out_megabytes)
        for text in self._all(split, directory):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return

    def _all(self, split: Split, directory: Path) -> Iterator[bytes]:
        carved = split != "test" and self.corpus not in OWN_VALIDATION
        part = TEST.get(self.corpus, "test") if split == "test" else "train" if carved else split
        name = NAMES.get(self.corpus, self.corpus)
        otherwise = "put the data set, prepared as array_record, in the folder tfds of the data directory"
        for record in catalogue.records(name, part, directory, otherwise):
            field = {"pg19": "book_text", "lambada": "passage"}.get(self.corpus, "text")
            text = catalogue.as_bytes(record[field])
            if not carved or (hashlib.sha256(text).digest()[:2] < b"\x02\x8f") == (split == "validation"):
                yield text
