"""What the tables of a measurement compute, against data of which the answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from transformer_jax.report import approximated, costs, measured
from transformer_jax.report.measured import Measured

pytestmark = pytest.mark.quick

TABLE = {
    "source": "arXiv:0000.00000, Table 1",
    "tag": "exact",
    "precision": 0.05,
    "rows": {"full": {"T = 64": 8.0, "T = 128": 2.0}, "linear": {"T = 64": 8.0, "T = 128": 4.0}},
    "notes": {},
}


def timed() -> Measured:
    rows = [
        {
            "kind": "measurement",
            "name": name,
            "length": length,
            "step_ms": milliseconds,
            "step_temporaries": 2**20 * length,
            "skipped": "",
        }
        for length in (64, 128, 256)
        for name, milliseconds in (("full", length**2 / 64), ("linear", 2 * length))
    ]
    experiment = {"title": "t", "published": {"steps/s": TABLE}}
    return Measured(directory=Path(), experiment=experiment, rows=tuple(rows))


def test_ratios_stand_beside_the_published_ones():
    sheet = costs.ratios(timed().rows, costs.quantities(timed().rows)[0], TABLE)
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["linear"] == ("7.81 (0.50×)", "3.91 (1.00×)", "1.95 (2.00×)")
    assert rows["published: linear"] == ("8 (1.00×)", "4 (2.00×)", "–")
    assert any(TABLE["source"] in note for note in sheet.notes)


def test_exponents_and_crossover():
    sheet = costs.exponents(timed().rows)
    assert [column.name for column in sheet.columns[-2:]] == [
        "faster than full from",
        "less memory than full from",
    ]
    assert sheet.rows == (("full", "2.00", "1.00", "–", "–"), ("linear", "1.00", "1.00", "256", "never here"))
    assert costs.below_from({"full": {"T = 64": 2.0}, "linear": {"T = 64": 1.0}}, "linear", "full") == 64


def test_the_figure_rings_the_crossover():
    time, memory = measured.figures(timed())["cost"].axes
    assert time.get_ylabel() == "milliseconds" and "MiB" in memory.get_ylabel()
    lines = {line.get_label(): line for line in time.lines}
    assert list(lines["full"].get_ydata()) == [64, 256, 1024] and list(lines["full"].get_xdata()) == [
        64,
        128,
        256,
    ]
    rings = [line for line in time.lines if line.get_markersize() > 3]
    assert [(list(ring.get_xdata()), list(ring.get_ydata())) for ring in rings] == [([256], [512])]
    assert not [line for line in memory.lines if line.get_markersize() > 3]


def errors(draws: int = 15) -> list[dict]:
    random = np.random.default_rng(0)
    scale = {"positive, orthogonal": 1, "positive, independent": 1.5}
    scale |= {"trigonometric, orthogonal": 1, "trigonometric, independent": 0.5}
    rows = []
    for draw in range(draws):
        shared = random.normal()
        for name, factor in scale.items():
            error = factor * math.exp(shared + 0.05 * random.normal())
            row = {"estimator": name, "features": 16, "draw": draw, "spread": 1.0, "mse": error}
            rows.append(row | {"small_entries": error, "large_entries": error})
    return rows


def test_a_claim_is_judged_by_paired_draws():
    rows = errors()
    sheet = approximated.claims(rows)
    words = [row[-1] for row in sheet.rows]
    assert words == ["reproduced", "did not reproduce", "inconclusive", "inconclusive", "not claimed"]
    less, more = (
        np.log([row["mse"] for row in rows if row["estimator"] == f"positive, {kind}"])
        for kind in ("orthogonal", "independent")
    )
    mean = np.exp((less - more).mean())
    assert sheet.rows[0][2].startswith(f"{mean:.2g} [")
    # Holm: the smallest of five p-values counts five times.
    p = {row[0]: row[3] for row in sheet.rows}
    raw = stats.ttest_rel(less, more).pvalue
    other = stats.ttest_rel(
        *(
            np.log([row["mse"] for row in rows if row["estimator"] == f"trigonometric, {kind}"])
            for kind in ("orthogonal", "independent")
        )
    ).pvalue
    times = 5 if raw < other else 4
    assert float(p[approximated.CLAIMS[0].says]) == pytest.approx(times * raw, rel=0.5)


def test_few_draws_are_inconclusive():
    assert {row[-1] for row in approximated.claims(errors(draws=4)).rows} == {"inconclusive", "not claimed"}
