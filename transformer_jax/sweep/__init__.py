"""Variants × learning rates × weight decays × widths × seeds: every cell a run."""
