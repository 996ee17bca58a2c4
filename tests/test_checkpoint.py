"""Checkpoints: exact, verified, and refused or set aside with a sentence."""

from __future__ import annotations

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import checkpoint
from transformer_jax.checkpoint import Checkpoints, PatientLoop, checksum, checksums, leaves, restore_latest
from transformer_jax.errors import BadInput

pytestmark = pytest.mark.quick


def parts(scale=1.0):
    key = jax.random.key(3)
    model = {
        "layers": [{"kernel": scale * jax.random.normal(key, (5, 7)), "bias": jnp.zeros(7)}],
        "half": scale * jax.random.normal(key, (3,), jnp.bfloat16),
        "mask": jnp.array([True, False, True]),
    }
    training = {
        "step": jnp.int32(4),
        "key": key,
        "nothing": {},
        "slots": (jnp.arange(6, dtype=jnp.uint8), None),
    }
    return {"model": model, "training": training}


def equal(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


@pytest.fixture
def written(tmp_path):
    """Two checkpoints, at steps 3 and 10; `warned` gathers what is said."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (3, 10):
        checkpoints.save(step, parts(float(step)), {"position": step, "window": [0.1, 1 / 3]})
    checkpoints.close()
    return tmp_path / "checkpoints"


def reopened(directory):
    warned = []
    return Checkpoints(directory, warn=warned.append), warned


def test_restores_every_bit_and_the_record(written):
    checkpoints, warned = reopened(written)
    restored = checkpoints.restore(parts())
    assert restored.step == 10 and restored.record == {"position": 10, "window": [0.1, 1 / 3]}
    equal(restored.parts, parts(10.0))
    assert jnp.issubdtype(restored.parts["training"]["key"].dtype, jax.dtypes.prng_key)
    assert warned == []


def test_nothing_to_restore_is_none(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(parts()) is None


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5):
        checkpoints.save(step, parts(), {})
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5"]


def test_arrays_may_be_donated_and_the_record_changed_once_save_returns(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state, record = {"model": {"w": jnp.zeros((256, 256))}}, {"window": {"loss": 0}}
    for step in range(4):
        checkpoints.save(step, state, record)
        record["window"]["loss"] += 1
        state = bump(bump(state))
    checkpoints.wait()
    restored = checkpoints.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    np.testing.assert_array_equal(restored.parts["model"]["w"], 6.0)
    assert restored.record == {"window": {"loss": 3}}


def test_one_flipped_bit_anywhere_is_noticed(written, tmp_path):
    """In every file that holds data: the checkpoint is set aside, named, and the one before it used."""
    import shutil

    # Small files beside the data (sharding hints, time stamps) may change without changing a weight.
    files = [path for path in sorted((written / "10").rglob("*")) if path.is_file() and "/d/" in str(path)]
    assert len(files) >= 2
    for number, path in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(written, copy)
        victim = copy / path.relative_to(written)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 16
        victim.write_bytes(data)
        checkpoints, warned = reopened(copy)
        restored = checkpoints.restore(parts())
        if restored.step == 10:  # the bit was not of an array
            equal(restored.parts, parts(10.0))
            continue
        equal(restored.parts, parts(3.0))
        assert restored.step == 3 and len(warned) == 1 and str(copy / "10") in warned[0]
        assert (copy / "10.damaged").is_dir() and not (copy / "10").exists()


def test_an_altered_weight_is_named(written, monkeypatch):
    """What the library restores silently, the checksum sees."""
    import transformer_jax.checkpoint as module

    read = module._read

    def flipping(path, **items):
        stored = read(path, **items)
        if path.name == "10" and "model" in items:
            leaf = np.array(stored["model"]["layers.0.kernel"])
            leaf.view(np.uint32)[2, 3] ^= 1
            stored["model"]["layers.0.kernel"] = jnp.asarray(leaf)
        return stored

    monkeypatch.setattr(module, "_read", flipping)
    checkpoints, warned = reopened(written)
    assert checkpoints.restore(parts()).step == 3
    assert "layers.0.kernel" in warned[0] and "10.damaged" in warned[0]


@pytest.mark.parametrize("damage", ["empty", "truncated", "record"])
def test_unreadable_checkpoints_are_set_aside(written, damage):
    newest = written / "10"
    if damage == "empty":
        newest = written / "12"
        newest.mkdir()
    elif damage == "truncated":
        for path in newest.rglob("d/*"):
            path.write_bytes(path.read_bytes()[:10])
    else:
        path = newest / "record" / "metadata"
        path.write_text(path.read_text().replace('"position": 10', '"position": 11'))
    checkpoints, warned = reopened(written)
    assert checkpoints.restore(parts()).step == (10 if damage == "empty" else 3)
    assert len(warned) == 1 and newest.with_name(f"{newest.name}.damaged").is_dir()
    # Going on from there overwrites nothing that was set aside.
    checkpoints.save(12, parts(12.0), {})
    checkpoints.wait()
    assert checkpoints.restore(parts()).step == 12


def test_a_loop_ends_what_it_began_before_it_closes():
    """As the reads that are still under way when the first one fails."""
    loop, ended = PatientLoop(), []

    async def slow():
        await asyncio.sleep(0.01)
        ended.append(True)

    async def fails():
        asyncio.ensure_future(slow())
        raise ValueError

    with pytest.raises(ValueError):
        loop.run_until_complete(fails())
    loop.close()
    assert ended and loop.is_closed()


def test_a_large_array_that_was_cut_short_is_set_aside(tmp_path):
    """What the library meets while it reads an array, it raises in another form than the rest."""
    large = {"model": {"w": jax.random.normal(jax.random.key(0), (256, 128))}}
    checkpoints, warned = reopened(tmp_path)
    checkpoints.save(1, large, {})
    checkpoints.wait()
    path = max((tmp_path / "1").rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:1000])
    assert checkpoints.restore(large) is None
    assert "cannot be read" in warned[0] and "1.damaged" in warned[0]


def test_when_none_is_left_there_is_nothing_to_restore(written):
    for step in ("3", "10"):
        for path in (written / step).rglob("d/*"):
            path.unlink()
    checkpoints, warned = reopened(written)
    assert checkpoints.restore(parts()) is None and len(warned) == 2


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda p: p["model"].update(half=jnp.zeros(3)), "half as bfloat16[3], this model wants float32[3]"),
        (lambda p: p["model"].update(mask=jnp.zeros(4, bool)), "mask as bool[3], this model wants bool[4]"),
        (lambda p: p["model"].update(more=jnp.zeros(1)), "lacks more"),
        (lambda p: p["model"].pop("half"), "has half, which this model lacks"),
        (lambda p: p.update(other=p["model"]), "holds no other"),
    ],
)
def test_another_model_is_refused_not_cast(written, change, said):
    like = parts()
    change(like)
    checkpoints, _ = reopened(written)
    with pytest.raises(BadInput) as error:
        checkpoints.restore(like)
    assert said in str(error.value)
    assert sorted(path.name for path in written.iterdir()) == ["10", "3"]


def test_a_reader_takes_one_part_and_changes_nothing(written):
    (written / "11").mkdir()
    before = sorted(written.rglob("*"))
    warned = []
    restored = restore_latest(written, {"model": parts()["model"]}, warn=warned.append)
    assert restored.step == 10 and restored.parts.keys() == {"model"} and "11" in warned[0]
    equal(restored.parts, {"model": parts(10.0)["model"]})
    assert sorted(written.rglob("*")) == before


def test_a_reader_without_checkpoints_says_so(tmp_path):
    with pytest.raises(BadInput, match="no checkpoints at"):
        restore_latest(tmp_path / "none", parts())
    with pytest.raises(BadInput, match="no readable checkpoint"):
        restore_latest(tmp_path, parts())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_checksum_sees_each_bit_and_each_place(dtype):
    base = np.zeros((3, 5), jnp.dtype(dtype))
    seen = {np.asarray(checksum(jnp.asarray(base))).tobytes()}
    places = 0
    for index in np.ndindex(base.shape):
        for bit in range(1 if dtype == "bool" else 8 * base.itemsize):
            changed = base.copy()
            view = changed.view(f"uint{8 * base.itemsize}")
            view[index] ^= view.dtype.type(1 << bit)
            seen.add(np.asarray(checksum(jnp.asarray(changed))).tobytes())
            places += 1
    assert len(seen) == places + 1


def test_checksum_sees_order_and_the_sign_of_zero():
    x = jnp.arange(6.0).reshape(2, 3)
    assert len({checksums({"x": y})["x"] for y in (x, x[::-1], x[:, ::-1], -x, x.T.reshape(2, 3))}) == 5
    assert checksums({"x": jnp.zeros(2)}) != checksums({"x": -jnp.zeros(2)})


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), PermissionError("denied"), ValueError("UNAVAILABLE: HTTP 503")]
)
def test_a_store_that_does_not_answer_is_no_damage(error):
    with pytest.raises(type(error)), checkpoint._reading():
        raise error
    with pytest.raises(checkpoint.Damaged), checkpoint._reading():
        raise ValueError("DATA_LOSS: zlib: incorrect header check")
