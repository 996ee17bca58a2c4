"""Checkpoints that are checked: saved while training goes on, and believed only if they verify.

A step directory holds the arrays in named parts (a model can be restored without its optimizer) and a
record: small numbers such as the data position, and a checksum of every array. One flipped bit in a
data file would otherwise be restored silently. This is the only file that knows the checkpoint library.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from transformer_jax.errors import BadInput
from transformer_jax.parallel.group import agreed, objection
from transformer_jax.store import absolute

Leaves = dict[str, Any]
Parts = Mapping[str, Any]
RECORD = "record"
# What the library raises on files that are missing, cut short or scrambled; not want of memory, not bugs.
UNREADABLE = (OSError, ValueError, KeyError)
# Of these, what is no fault of the files: a store that does not answer, or lets nobody in. The library tells
# by a name in a ValueError alone.
UNREACHABLE = (PermissionError, ConnectionError, TimeoutError)
NO_ANSWER = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED"
)


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: of its directory. parts: the pytrees asked for, by name.
      record: the small numbers saved with them.
    """

    step: int
    parts: dict[str, Any]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, DIRECTORY/<step>, written by its trainer.

    Args:
      directory: made if it is not there.
      keep: number of checkpoints that stay.
      warn: is told in a sentence what was set aside.
    """

    def __init__(self, directory: Path, *, keep: int = 2, warn: Callable[[str], None] = print):
        self.directory, self.warn = absolute(directory), warn
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, parts: Parts, record: Mapping[str, Any]) -> None:
        """Saves in the background; the arrays may be donated as soon as this returns.

        Args:
          parts: name -> pytree of arrays; the checksums are computed where the arrays are.
          record: anything JSON can hold.
        """
        flat = {part: leaves(tree) for part, tree in parts.items()}
        arrays = {part: {"sums": checksums(named), "kinds": kinds(named)} for part, named in flat.items()}
        # As it is now: it is written later, when its owner may have changed it.
        written: dict[str, Any] = copy.deepcopy({"arrays": arrays, "record": dict(record)})
        written["digest"] = _digest(written)
        items = {part: ocp.args.StandardSave(named) for part, named in flat.items() if named}
        self.manager.save(step, args=ocp.args.Composite(**items, record=ocp.args.JsonSave(written)))

    def restore(self, like: Parts) -> Restored | None:
        """The newest checkpoint that verifies, or None where there is none.

        One that does not is renamed to <step>.damaged, and the one before it is tried. Several processes
        all call it, and what one finds damaged is damaged for all.

        Args:
          like: the pytrees to restore, as arrays or jax.ShapeDtypeStruct with their shardings.

        Raises:
          BadInput: a sound checkpoint holds other names, shapes or dtypes than `like`.
        """
        for step in agreed(lambda: sorted(self.manager.all_steps(), reverse=True)):
            path = self.path(step)
            try:
                return _restore(path, like)
            except Damaged as damage:
                aside = agreed(functools.partial(_set_aside, path))
                self.manager.reload()
                earlier = _instead(self.manager.all_steps())
                self.warn(f"The checkpoint {path} {damage}. It is set aside as {aside}; {earlier}")
        return None

    def path(self, step: int) -> Path:
        return self.directory / str(step)

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def restore_latest(directory: Path, like: Parts, *, warn: Callable[[str], None] = print) -> Restored:
    """Reads the newest checkpoint under `directory` that verifies, and changes nothing there.

    Raises BadInput where there is none, or where it does not fit `like`.
    """
    directory = absolute(directory)
    if not directory.is_dir():
        raise BadInput(f"There are no checkpoints at {directory}: give the directory of a trained run.")
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                return _restore(directory / str(step), like)
            except Damaged as damage:
                earlier = [other for other in manager.all_steps() if other < step]
                warn(f"The checkpoint {directory / str(step)} {damage}; {_instead(earlier)}")
    raise BadInput(f"There is no readable checkpoint in {directory}: train the run again.")


def _instead(earlier: Sequence[int]) -> str:
    return f"that of step {max(earlier):,} is tried." if earlier else "there is none before it."


class Damaged(Exception):
    """A checkpoint that cannot be believed; the message continues "The checkpoint PATH ..."."""


class PatientLoop(asyncio.SelectorEventLoop):
    """Ends its tasks before it closes. The library closes its loop at the first array that cannot be read;
    the reads still under way would come back to a closed loop, each with a traceback on stderr."""

    def close(self):
        if not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        super().close()


class PatientLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return PatientLoop()


@contextmanager
def _reading() -> Iterator[None]:
    """Names what cannot be read as Damaged, in all processes where one of them met it: none goes on alone to
    a program that takes part of every process."""
    damage, cause = None, None
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(PatientLoops())
    try:
        yield
    except Damaged as error:
        damage = str(error)
    except Exception as error:
        # The library wraps what it meets in the data in a plain Exception.
        cause = error.__cause__ if type(error) is Exception else error
        if not isinstance(cause, UNREADABLE) or _unreachable(cause):
            raise
        damage = f"cannot be read ({_first_line(cause)})"
    finally:
        asyncio.set_event_loop_policy(policy)
    if (damage := objection(damage)) is not None:
        raise Damaged(damage) from cause


def _unreachable(error: BaseException) -> bool:
    """Whether a store failed to answer: the checkpoint may be sound, and must not be set aside."""
    http = getattr(error, "code", None)  # of gcsfs
    return (
        isinstance(error, UNREACHABLE)
        or bool(NO_ANSWER.search(str(error)))
        or (isinstance(http, int) and http != 404)
    )


def _read(path: Path, **items: ocp.args.CheckpointArgs) -> Any:
    """Items of a step, by this process alone: the manager's own way to read ends with a barrier, where the
    others would wait for ever for a process that could not read its part."""
    alone = ocp.options.MultiprocessingOptions(primary_host=None, active_processes={jax.process_index()})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as reader:
        return reader.restore(path, args=ocp.args.Composite(**items))


def _restore(path: Path, like: Parts) -> Restored:
    with _reading():
        record = _read(path, record=ocp.args.JsonRestore())[RECORD]
        if not isinstance(record, dict) or record.pop("digest", None) != _digest(record):
            raise Damaged("has an altered record")
    wanted = {part: leaves(tree) for part, tree in like.items()}
    for part, named in wanted.items():
        _require_fit(path, part, named, record["arrays"].get(part))
    items = {part: ocp.args.StandardRestore(_abstract(named)) for part, named in wanted.items() if named}
    with _reading():
        stored = _read(path, **items) if items else {}
    named = {part: stored[part] if part in items else {} for part in like}
    sums = {part: checksums(arrays) for part, arrays in named.items()}
    with _reading():  # each process has its own copy of what is whole everywhere
        for part in like:
            for name, expected in record["arrays"][part]["sums"].items():
                if sums[part][name] != expected:
                    raise Damaged(f"is altered: {part} {name} does not have its checksum")
    parts = {part: _unflatten(tree, named[part]) for part, tree in like.items()}
    return Restored(int(path.name), parts, record["record"])


def _require_fit(path: Path, part: str, wanted: Leaves, found: dict[str, Any] | None) -> None:
    """Raises BadInput where a checkpoint holds something else than what is to be restored."""
    if found is None:
        raise BadInput(f"The checkpoint {path} holds no {part}: it was written by something else.")
    expected, stored = kinds(wanted), found["kinds"]
    for name in sorted({*expected, *stored}):
        if name not in stored:
            raise BadInput(f"The checkpoint {path} lacks {name}: restore it into the model that wrote it.")
        if name not in expected:
            raise BadInput(
                f"The checkpoint {path} has {name}, which this model lacks: "
                "restore it into the model that wrote it."
            )
        if stored[name] != expected[name]:
            raise BadInput(
                f"The checkpoint {path} holds {name} as {stored[name]}, this model wants {expected[name]}: "
                f"restore it into the model that wrote it."
            )


# Names, kinds and values of the leaves.


def leaves(tree: Any) -> Leaves:
    """A pytree as {dotted path: array}; typed random keys as the integers they are."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _plain(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def kinds(named: Leaves) -> dict[str, str]:
    """Dtype and shape of each leaf, such as "float32[2, 64]"."""
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in named.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _abstract(named: Leaves) -> Leaves:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
        for name, leaf in named.items()
    }


def _unflatten(like: Any, named: Leaves) -> Any:
    def wrap(leaf, value):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value

    # Both flatten in the order of `like`.
    old, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, map(wrap, old, (named[name] for name in leaves(like))))


# Checksums.


def checksums(named: Leaves) -> dict[str, str]:
    """64 bits for each array, as text: the same on every mesh, and another if any bit differs."""
    sums = jax.device_get({name: checksum(leaf) for name, leaf in named.items()})
    return {name: "".join(f"{int(half):08x}" for half in pair) for name, pair in sums.items()}


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """Two sums modulo 2³² over the elements of x, each a hash of its bits and its index: (2,) uint32.

    A sum does not depend on the order of shards. For one index the hash is a bijection of the bits, so
    a change to one element never goes unseen; any other change does with probability 2⁻⁶⁴.
    """
    words = _words(x)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    halves = [_mixed(words ^ _mixed(index + jnp.uint32(salt))) for salt in (0x9E3779B9, 0x7F4A7C15)]
    return jnp.stack([jnp.sum(half, dtype=jnp.uint32) for half in halves])


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as uint32, with a new last axis where an element is longer."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = jax.dtypes.itemsize_bits(x.dtype)
    if bits >= 32:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every input bit moves about half of the output bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


# Small things.


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _set_aside(path: Path) -> str:
    """The name under which a damaged checkpoint stays, no longer one of the run's."""
    aside = _free(path.with_name(f"{path.name}.damaged"))
    path.rename(aside)
    return aside.name


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""

    def candidates() -> Iterator[Path]:
        yield path
        count = 2
        while True:
            yield path.with_name(f"{path.name}-{count}")
            count += 1

    return next(candidate for candidate in candidates() if not candidate.exists())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
