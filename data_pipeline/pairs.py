"""The epoch plan: which records every step shows, as targets and as identities.

All of it is a function of the datasets' indexes, the settings, the seed and the number of the step, so that processes, workers and resumed
runs agree without a word. Records and people of several datasets are numbered one after the other.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt32

from data_pipeline.buckets import CHUNK, Bucket, buckets, nearest
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC, Index, open_index, read_index
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig

VERSION = 1  # of the order: a change that shows other records at a step makes it another
KEPT = 2  # epochs: readers that are ahead are in the next one already


@dataclass(frozen=True, eq=False)
class Rows:
    """What some rows of a global batch show."""

    epoch: int
    bucket: Bucket
    targets: Int64[np.ndarray, "b"]
    """Record numbers."""
    identities: Int64[np.ndarray, "b"]
    """The record that shows the person's face."""
    inline: Bool[np.ndarray, "b"]
    """Whether that is the identity photo inside the record rather than the record's target."""
    captions: UInt8[np.ndarray, "b"]
    """How many each target has."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """One epoch's targets, ordered so that each batch is a run of them."""

    targets: UInt32[np.ndarray, "n"]
    """Bucket after bucket, each shuffled and cut to whole batches."""
    batches: UInt32[np.ndarray, "steps"]
    """At each step, the number of a batch among `targets`."""
    ends: Int64[np.ndarray, "buckets"]
    """The first batch that is no longer of a bucket."""


def draw(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one purpose, e.g. of one record in one epoch. Nothing is shared, so the order of calls is of no matter."""
    return np.random.default_rng((seed, *purpose.encode(), *numbers, 1))  # NumPy does not tell (5,) from (5, 0)


class Plan:
    """Steps of an endless run over some datasets. Threads may share it; a pickled one opens the indexes itself.

    - Every record that can be a target is one once an epoch; with `max_per_person` = K a person has at most K targets an epoch, the next K
      of its records each time.
    - An epoch's targets are shuffled in each bucket and cut into batches of `batch_size`, then the batches of all buckets are shuffled.
      Fewer than `batch_size` records of a bucket are left over, others each epoch.
    - spss: the identity is the target. spms: the identity photo of the record if it has one, or else a different record of the person,
      a real photo unless `identities` is any, drawn anew each epoch. Records without a possible identity are no targets.
    """

    def __init__(self, cfg: DataConfig, indexes: Sequence[Index], *, batch_size: int, seed: int):
        """Raises InputError when there is nothing to read. Cheap; the first step reads the indexes."""
        if not indexes or batch_size < 1 or seed < 0:
            raise InputError(f"{len(indexes)} datasets, batch size {batch_size}, seed {seed}; expected a dataset, 1 or more, and 0 or more")
        self.cfg, self.indexes, self.batch_size, self.seed = cfg, tuple(indexes), batch_size, seed
        self.starts = np.cumsum([0, *(index.records for index in indexes)])
        self.table = buckets(cfg.resolution, cfg.bucket_step, cfg.max_aspect)
        if not 0 < self.records < 2**32:
            raise InputError(f"{' '.join(map(str, cfg.paths))}, split {cfg.split}: {self.records} records; expected 1 to {2**32 - 1}")
        self._lock = threading.RLock()
        self._epochs: dict[int, Epoch] = {}
        self._first_steps = [0]  # of epochs, as far as they are known

    def __reduce__(self):
        return _reopen, (self.cfg, self.batch_size, self.seed)

    @property
    def records(self) -> int:
        """Of all datasets."""
        return int(self.starts[-1])

    # What each record is ----------------------------------------------------------------------------

    @cached_property
    def _targets(self) -> np.ndarray:
        """(records,) bool: what can be a target."""
        if self.cfg.pairing == "spss":
            return np.ones(self.records, bool)
        return np.concatenate([self._with_identity(index) for index in self.indexes])

    def _with_identity(self, index: Index) -> np.ndarray:
        candidate = self._candidates(index.flags)
        counts = np.bincount(index.persons[candidate], minlength=index.people).astype(np.uint32)
        others = counts[index.persons] - candidate  # of the same person
        return (index.flags & INLINE_IDENTITY != 0) | (others > 0)

    def _candidates(self, flags: np.ndarray) -> np.ndarray:
        """What may be the identity of another record."""
        return flags & SYNTHETIC == 0 if self.cfg.identities == "real" else np.ones(len(flags), bool)

    @cached_property
    def _bucket_of(self) -> np.ndarray:
        """(records,) bucket number of each target; of all else the number of buckets."""
        numbers = np.empty(self.records, np.uint8 if len(self.table) < 256 else np.uint16)
        for index, start in zip(self.indexes, self.starts):
            for at in range(0, index.records, CHUNK):
                part = nearest(index.sizes[at : at + CHUNK], self.table)
                numbers[start + at : start + at + len(part)] = part
        if self.cfg.pairing != "spss":
            numbers[~self._targets] = len(self.table)
        return numbers

    @cached_property
    def _rotating(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets of people who have more than max_per_person: record, its rank among the person's targets, how many these are."""
        most = self.cfg.max_per_person
        if most is None:
            return np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint32)
        parts = []
        for index, start in zip(self.indexes, self.starts):
            mine = self._targets[start : start + index.records]
            counts = np.bincount(index.persons[mine], minlength=index.people)
            listed = index.order[(mine & (counts > most)[index.persons])[index.order]]  # by person
            counts = counts[counts > most]
            counts = counts.astype(np.uint32)
            ranks = np.arange(len(listed), dtype=np.uint32) - np.repeat(np.cumsum(counts, dtype=np.uint32) - counts, counts)
            parts.append((listed + np.uint32(start), ranks, np.repeat(counts, counts)))
        return tuple(np.concatenate(arrays) for arrays in zip(*parts))

    @cached_property
    def _always(self) -> np.ndarray:
        """`_bucket_of` without the rotating ones."""
        records = self._rotating[0]
        if not len(records):
            return self._bucket_of
        numbers = self._bucket_of.copy()
        numbers[records] = len(self.table)
        return numbers

    @cached_property
    def _always_counts(self) -> np.ndarray:
        return np.bincount(self._always, minlength=len(self.table) + 1)[: len(self.table)]

    # Epochs -----------------------------------------------------------------------------------------

    def _turn(self, epoch: int) -> np.ndarray:
        """The records among the rotating ones that are targets in an epoch."""
        records, ranks, counts = self._rotating
        most = self.cfg.max_per_person or 0
        return records[(ranks + (counts - np.uint32(epoch * most) % counts)) % counts < most] if len(records) else records

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Whole batches of an epoch; they differ between epochs only with `max_per_person`. Raises InputError when there are none."""
        with self._lock:
            counts = self._always_counts + np.bincount(self._bucket_of[self._turn(epoch)], minlength=len(self.table))
        if steps := int((counts // self.batch_size).sum()):
            return steps
        raise InputError(
            f"{' '.join(map(str, self.cfg.paths))}, split {self.cfg.split}: epoch {epoch} has {counts.sum()} targets ({self.cfg.pairing}), and the fullest "
            f"of its {np.count_nonzero(counts)} buckets has {counts.max()}, too few for a batch of {self.batch_size}; "
            "use a smaller batch, a larger data.bucket_step, or more pictures"
        )

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the step's number in it."""
        if self.cfg.max_per_person is None:
            return divmod(step, self.steps_per_epoch())
        with self._lock:
            while self._first_steps[-1] <= step:
                self._first_steps.append(self._first_steps[-1] + self.steps_per_epoch(len(self._first_steps) - 1))
        epoch = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        return epoch, step - self._first_steps[epoch]

    def epoch(self, number: int) -> Epoch:
        """The plan of an epoch. Takes seconds for tens of millions of records; the newest ones are kept."""
        with self._lock:
            if number not in self._epochs:
                while len(self._epochs) >= KEPT:
                    del self._epochs[next(iter(self._epochs))]
                self._epochs[number] = self._make(number)
            return self._epochs[number]

    def _make(self, number: int) -> Epoch:
        self.steps_per_epoch(number)  # raises for an epoch without batches
        turn = self._turn(number)
        buckets_of_turn = self._bucket_of[turn]
        parts, ends = [], []
        for bucket in range(len(self.table)):
            records = np.concatenate([_where(self._always, bucket), turn[buckets_of_turn == bucket]])
            draw(self.seed, "records", number, bucket).shuffle(records)
            whole = len(records) // self.batch_size
            parts.append(records[: whole * self.batch_size])
            ends.append(whole)
        ends = np.cumsum(ends)
        order = np.arange(ends[-1], dtype=np.uint32)
        draw(self.seed, "batches", number).shuffle(order)
        return Epoch(np.concatenate(parts), order, ends)

    # Steps ------------------------------------------------------------------------------------------

    def bucket(self, step: int) -> Bucket:
        """The shape of a step's pictures, the same for all its rows."""
        epoch, number = self.locate(step)
        return self._batch(self.epoch(epoch), number)[1]

    def _batch(self, epoch: Epoch, number: int) -> tuple[int, Bucket]:
        batch = int(epoch.batches[number])
        return batch, self.table[int(np.searchsorted(epoch.ends, batch, side="right"))]

    def rows(self, step: int, first: int = 0, last: int | None = None) -> Rows:
        """Rows [first, last) of the global batch of a step."""
        number, at = self.locate(step)
        epoch = self.epoch(number)
        batch, bucket = self._batch(epoch, at)
        targets = epoch.targets[batch * self.batch_size : (batch + 1) * self.batch_size][first:last].astype(np.int64)
        identities, inline = zip(*(self._identity(int(record), number) for record in targets))
        captions = [self.indexes[dataset].captions[place] for dataset, place in map(self.place, targets)]
        return Rows(number, bucket, targets, np.array(identities, np.int64), np.array(inline, bool), np.array(captions, np.uint8))

    def _identity(self, record: int, epoch: int) -> tuple[int, bool]:
        if self.cfg.pairing == "spss":
            return record, False
        dataset, number = self.place(record)
        index = self.indexes[dataset]
        if index.flags[number] & INLINE_IDENTITY:
            return record, True
        others = index.records_of(int(index.persons[number]))
        others = others[self._candidates(index.flags[others]) & (others != number)]
        return int(self.starts[dataset] + others[draw(self.seed, "identity", epoch, record).integers(len(others))]), False

    def place(self, record: int | np.integer) -> tuple[int, int]:
        """The dataset of a record and its number there."""
        dataset = int(np.searchsorted(self.starts, record, side="right")) - 1
        return dataset, int(record - self.starts[dataset])

    @property
    def full_buckets(self) -> tuple[Bucket, ...]:
        """Those with targets for a batch."""
        with self._lock:
            counts = np.bincount(self._bucket_of, minlength=len(self.table))
        return tuple(bucket for bucket, count in zip(self.table, counts) if count >= self.batch_size)

    # What a user should know ------------------------------------------------------------------------

    def unseen(self) -> tuple[str, ...]:
        """A sentence for each kind of record that no epoch shows."""
        with self._lock:
            counts = np.bincount(self._bucket_of, minlength=len(self.table) + 1)
        said, without = [], int(counts[-1])
        if without:
            kind = "other real photo" if self.cfg.identities == "real" else "other picture"
            said.append(f"{without} of {self.records} records are no targets: there is no {kind} of the person to show the identity")
        few = {self.table[bucket]: int(n) for bucket, n in enumerate(counts[:-1]) if 0 < n < self.batch_size}
        if few:
            shapes = ", ".join(f"{width}x{height}: {n}" for (height, width), n in few.items())
            said.append(f"{sum(few.values())} of {self.records} records are never seen: their buckets hold fewer than a batch of {self.batch_size} ({shapes})")
        return tuple(said)


def open_plan(cfg: DataConfig, *, batch_size: int, seed: int) -> Plan:
    """The plan of the datasets of `cfg`. Raises InputError where an index is missing, damaged or of other shards."""
    return Plan(cfg, [open_index(path, cfg.split) for path in cfg.paths], batch_size=batch_size, seed=seed)


def _reopen(cfg: DataConfig, batch_size: int, seed: int) -> Plan:
    """In a worker process, after `open_plan` has looked at the shards."""
    return Plan(cfg, [read_index(path, cfg.split) for path in cfg.paths], batch_size=batch_size, seed=seed)


def _where(numbers: np.ndarray, wanted: int) -> UInt32[np.ndarray, "n"]:
    """np.flatnonzero(numbers == wanted) in little memory."""
    parts = (np.flatnonzero(numbers[at : at + CHUNK] == wanted).astype(np.uint32) + np.uint32(at) for at in range(0, len(numbers), CHUNK))
    return np.concatenate([np.empty(0, np.uint32), *parts])
