"""Pathfinder-like images: do the two marks lie on one curve?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transformer_jax.data.draws import Draws
from transformer_jax.data.task import FIXED_SEEDS, Batch, Generated, Split
from transformer_jax.errors import BadInput

FINE = 2  # sub-pixels per pixel and axis: the source's anti-aliasing
GAP = 1.0  # pixels between paddles, and kept free around them
TURNS = 16  # directions tried for each paddle
TRIES = 50  # of a curve, before it is left out or its image begun anew
IMAGES = 50  # begun before it is said that none is possible


@dataclass(frozen=True, kw_only=True)
class Pathfinder(Generated):
    """Images like the Long Range Arena's Pathfinder (arXiv 2011.04006), pixel by pixel.

    After Linsley et al. 2018: two dashed curves of `paddles` strokes begin `seed_distance` pixels apart, and
    `distractors` shorter ones lie around them. Two discs mark the beginning of one long curve and an end: of
    the same curve (label 1) or of the other (label 0).
    Parameters are the published ones for the hard 32 × 32 set. This is no copy of it: the generator is our
    own, written from the description and the original's rule for turning. It differs in that a stroke has a
    real-valued place, and takes the first of TURNS random directions in which it fits; in its gaps (1 pixel);
    in that the curves grow one after the other, not by turns; in anti-aliasing (the mean of 2 × 2 sub-pixels,
    the original's is Lanczos). Distractors that find no room are left out. Scores compare with each other,
    not with published ones. 160,000 images take about ten minutes, once.
    """

    name: ClassVar[str] = "pathfinder"
    target: ClassVar[str] = "sequence"  # type: ignore[assignment]
    causal: ClassVar[bool] = False

    length: int = 1024
    paddles: int = 14
    distractors: int = 5
    distractor_paddles: int = 4
    paddle_length: float = 2.0
    thickness: float = 0.5
    radius: float = 1.5
    seed_distance: float = 7.0
    continuity: float = 1.0
    train_examples: int | None = 160_000
    validation_examples: int = 20_000
    test_examples: int = 20_000

    def check(self) -> None:
        for field in ("paddles", "distractor_paddles"):
            self.whole(field)
        self.whole("distractors", at_least=0)
        if self.side**2 != self.length or self.side < 8:
            raise BadInput(f"pathfinder: length is {self.length}; an image has 8 × 8, 9 × 9, … pixels.")
        for field in ("paddle_length", "thickness", "radius", "seed_distance", "continuity"):
            if not getattr(self, field) > 0:
                raise BadInput(f"pathfinder: {field} is {getattr(self, field)}; it must be above 0.")

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return round(self.length**0.5)

    @property
    def vocabulary(self) -> int:
        return 256

    @property
    def outputs(self) -> int:
        return 2

    def examples(self, seed: int, indices: np.ndarray, step: int = 0) -> Batch:
        return self.collate(dict(zip(("image", "label"), self.images(seed, indices), strict=True)))

    def rows(self, split: Split, directory: Path) -> Iterator[Mapping[str, Any]]:
        count = self.examples_in(split)
        for start in range(0, count, 500):
            indices = np.arange(start, min(start + 500, count))
            for image, label in zip(*self.images(FIXED_SEEDS[split], indices), strict=True):
                yield {"image": image, "label": int(label)}

    def collate(self, columns: Batch) -> Batch:
        return {
            "inputs": columns["image"].astype(np.int32),
            "targets": columns["label"].astype(np.int32),
            "weights": np.ones(len(columns["label"]), np.float32),
        }

    def guesses(self) -> dict[str, float]:
        return {"chance": 0.5}

    def images(self, seed: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, length) uint8, row by row, and labels (B,)."""
        images = np.zeros((len(indices), self.length), np.uint8)
        labels = Draws(seed, indices).below(2, 1)[:, 0]
        open_ = np.arange(len(indices))
        for attempt in range(IMAGES):
            stream = 1 + attempt * (1 + (2 + self.distractors) * TRIES)
            drawn, good = self._images(seed, indices[open_], stream, labels[open_])
            images[open_[good]] = drawn[good]
            open_ = open_[~good]
            if not len(open_):
                return images, labels
        raise BadInput(
            f"pathfinder: two curves of {self.paddles} paddles find no room in {self.side} × {self.side} "
            "pixels; lower paddles or raise length."
        )

    def _images(
        self, seed: int, indices: np.ndarray, stream: int, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """An image for each row, and whether its two long curves found room."""
        draw, rows, cells = Draws(seed, indices, stream), len(indices), self.side * FINE
        image, taken = np.zeros((rows, cells, cells), bool), np.zeros((rows, cells, cells), bool)
        good, ends = np.ones(rows, bool), []
        # As in the original, the first begins around the middle.
        middle = self.side / 2 + (draw.uniform(2) - 0.5) * max(self.side - 4 * self.seed_distance, 0)
        origins = [middle, middle + self.seed_distance * _unit(2 * np.pi * draw.uniform(1)[:, 0])]
        kept_free = np.zeros_like(taken)  # where the second begins
        _fill(kept_free, origins[1][:, None], self.paddle_length / 2)
        for curve in range(2 + self.distractors):
            strokes, fits = self._curve(
                seed,
                indices,
                stream + 1 + curve * TRIES,
                taken if curve else kept_free,
                origins[curve] if curve < 2 else None,
                self.paddles if curve < 2 else self.distractor_paddles,
            )
            _fill(image, strokes, self.thickness / 2, fits)
            _fill(taken, strokes, GAP, fits)
            if curve < 2:
                good &= fits
                ends.append(strokes[:, -1])
        # The mark at a beginning is that of either curve: the two do not grow alike.
        every, first = np.arange(rows), draw.below(2, 1)[:, 0]
        second = np.where(labels == 1, first, 1 - first)
        for mark in (np.stack(origins)[first, every], np.stack(ends)[second, every]):
            _fill(image, mark[:, None], self.radius)
        shades = image.reshape(rows, self.side, FINE, self.side, FINE).mean(axis=(2, 4))
        return np.round(255 * shades).astype(np.uint8).reshape(rows, -1), good

    def _curve(
        self,
        seed: int,
        indices: np.ndarray,
        stream: int,
        taken: np.ndarray,
        begin: np.ndarray | None,
        paddles: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points along a curve (B, P, 2) for each row, and whether one of TRIES found room.

        taken: (B, S, S), where it may not go. begin: (B, 2); None: anywhere.
        """
        found, open_ = np.zeros((len(indices), paddles, self._points, 2)), np.arange(len(indices))
        for attempt in range(TRIES):
            draw, barred = Draws(seed, indices[open_], stream + attempt), taken[open_]
            tip = self.side * draw.uniform(2) if begin is None else begin[open_]
            heading, good = None, np.ones(len(open_), bool)
            path: list[np.ndarray] = []
            for paddle in range(paddles):
                points, heading, fits = self._paddle(draw, barred, tip, heading)
                good &= fits
                # Its own paddles bar a curve's way too, but the last not to the next.
                if paddle:
                    _fill(barred, path[-1], GAP)
                path.append(points)
                tip = points[:, -1] + GAP * _unit(heading)
            found[open_[good]] = np.stack(path, axis=1)[good]
            open_ = open_[~good]
            if not len(open_):
                break
        fits = np.ones(len(indices), bool)
        fits[open_] = False
        return found.reshape(len(indices), -1, 2), fits

    @property
    def _points(self) -> int:
        """Points that a stroke is drawn and checked by, two or more per sub-pixel."""
        return 1 + int(np.ceil(2 * FINE * self.paddle_length))

    def _paddle(self, draw: Draws, taken: np.ndarray, tail: np.ndarray, heading: np.ndarray | None):
        """The next stroke of each row's curve: points along it (B, P, 2), its heading, whether it fits.

        The turn from `heading` (B,), where there is one, has a density ∝ cos²(continuity · turn), as in the
        original, up to where that is zero.
        """
        share = draw.uniform(TURNS)
        if heading is None:
            headings = 2 * np.pi * share
        else:
            turn = np.linspace(-np.pi / 2, np.pi / 2, 181)
            headings = heading[:, None] + np.interp(share, _share_below(turn), turn) / self.continuity
        along = np.linspace(0, self.paddle_length, self._points)
        points = tail[:, None, None] + along[:, None] * _unit(headings)[:, :, None]
        cells = np.floor(points * FINE).astype(np.int64)
        inside = ((cells >= FINE) & (cells < taken.shape[-1] - FINE)).all(axis=(2, 3))  # a pixel of border
        y, x = np.moveaxis(np.clip(cells, 0, taken.shape[-1] - 1), -1, 0)
        every = np.arange(len(taken))
        fits = inside & ~taken[every[:, None, None], y, x].any(axis=2)
        chosen = fits.argmax(axis=1)
        return points[every, chosen], headings[every, chosen], fits[every, chosen]


def _share_below(turn: np.ndarray) -> np.ndarray:
    """The integral of cos² from −π/2 to `turn`, as a share of that to π/2."""
    return 0.5 + turn / np.pi + np.sin(2 * turn) / (2 * np.pi)


def _unit(angle: np.ndarray) -> np.ndarray:
    """Directions (..., 2) of angles."""
    return np.stack((np.sin(angle), np.cos(angle)), axis=-1)


def _fill(mask: np.ndarray, points: np.ndarray, radius: float, only: np.ndarray | None = None) -> None:
    """Sets the sub-pixels (B, S, S) within `radius` pixels of points (B, P, 2), in the rows `only` (B,)."""
    reach = int(radius * FINE)
    disc = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    disc = disc[(disc**2).sum(axis=1) <= (radius * FINE) ** 2]
    rows = np.arange(len(mask)) if only is None else np.flatnonzero(only)
    cells = np.floor(points[rows] * FINE).astype(np.int64)[:, :, None] + disc
    y, x = np.moveaxis(np.clip(cells, 0, mask.shape[-1] - 1), -1, 0)
    mask[rows[:, None, None], y, x] = True
