"""Variants × learning rates × weight decays × widths × seeds: every cell a run."""

from transformer_jax.sweep.run import sweep

__all__ = ["sweep"]
