"""Features that were computed ahead: how they lie on disk, how one is read, and what they belong to. No JAX at import.

    DIR/features/<feature>/<split>/
        plan.json             written first: what is computed, with which model and settings; see `Plan`
        rows.npy              the row where each record's values begin
        <group>/00000.npy     parts of at most `part_rows` rows of one shape, whole or absent
        complete              empty; made when every part is there, and only then the feature is opened

A group is a run of rows of one shape. Its parts are plain .npy files, so a row is one read at a computed place, from a local disk or a
mounted bucket, by any number of processes, and every file is a function of its rows alone (what a kill interrupts is made again, to the
byte). The rows of a record:

| feature | groups, in this order | a row | rows of a record |
|---|---|---|---|
| latents | 1152x864 (height x width), ... | (2, h, w, z): mean, log-variance of the fitted target | one |
| control | the same, then black-1152x864, ... | (2, h, w, z) of the keypoint image; of the black image | one |
| t5 | captions, empty | (T, E) of a caption; of the empty prompt | one a caption, in the record's order |
| clip | captions, empty | (V,) pooled | one a caption, in the record's order |
| arcface | faces | (E,) of length 1 | the target's face, then that of the inline identity if there is one |
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Literal, get_args

import numpy as np
from etils import epath

from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig, Feature

VERSION = 1
FEATURES: tuple[Feature, ...] = get_args(Feature)
StoredAs = Literal["float16", "float32"]
PLAN, COMPLETE = "plan.json", "complete"


@dataclass(frozen=True)
class Group:
    """`rows` rows of one shape, in parts of `part_rows`."""

    name: str
    rows: int
    shape: tuple[int, ...]
    part_rows: int

    def __post_init__(self):
        if self.rows < 1 or self.part_rows < 1 or not self.name.replace("-", "").isalnum():  # the name becomes a folder
            raise InputError(f"features: a group {self.name!r} of {self.rows} rows in parts of {self.part_rows} makes no sense")

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    def part(self, number: int) -> range:
        """The rows of the group that are in part `number`."""
        return range(number * self.part_rows, min((number + 1) * self.part_rows, self.rows))


@dataclass(frozen=True)
class Plan:
    """What one feature of one split is, in whole: the contents of plan.json."""

    feature: Feature
    split: str
    dataset: str
    """Fingerprint of the dataset's index."""
    records: int
    model: str
    """Fingerprint of the encoder's weights, `model_fingerprint`."""
    settings: Mapping[str, Any]
    """What it is tied to, `settings_of`."""
    dtype: StoredAs
    computed_in: str
    groups: tuple[Group, ...]
    version: int = VERSION

    def __post_init__(self):
        if self.version != VERSION:
            raise InputError(f"features of format {self.version}; this version reads format {VERSION}. Compute them again")

    @cached_property
    def starts(self) -> np.ndarray:
        """(groups + 1,) int64: the first row of each group, and the number of all rows."""
        return np.concatenate([[0], np.cumsum([group.rows for group in self.groups], dtype=np.int64)])

    def row_bytes(self, group: Group) -> int:
        return int(np.prod(group.shape)) * np.dtype(self.dtype).itemsize

    def parts(self) -> Iterator[tuple[Group, int]]:
        """Every part, in order."""
        return ((group, number) for group in self.groups for number in range(group.parts))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: epath.PathLike) -> Plan:
        try:
            values = json.loads(text)
            groups = tuple(Group(**{**group, "shape": tuple(group["shape"])}) for group in values.pop("groups"))
            return cls(**values, groups=groups)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            if isinstance(e, InputError):
                raise InputError(f"{path}: {e}") from None
            raise InputError(f"{path} is not the description of a feature ({e!r}); remove its folder and compute the feature again") from None


def settings_of(feature: Feature, cfg: DataConfig) -> dict[str, Any]:
    """The settings of a run that a feature is tied to."""
    if feature in ("latents", "control"):
        return {"resolution": cfg.resolution, "bucket_step": cfg.bucket_step, "max_aspect": cfg.max_aspect}
    return {"t5_length": cfg.t5_length} if feature == "t5" else {}


def folder_of(dataset: epath.PathLike, feature: Feature, split: str) -> epath.Path:
    return epath.Path(dataset) / "features" / feature / split


def model_fingerprint(model) -> str:
    """Names, shapes and the first row of every parameter of a loaded model, as a short hash. Needs no pass over the weights.

    Rounded to bfloat16 first, so that a model has one fingerprint however it was stored, converted, sharded or cast.
    """
    import jax
    import jax.numpy as jnp

    def first_row(x):
        while x.ndim > 1:
            x = x[0]
        return x.reshape(-1)[:256].astype(jnp.bfloat16).astype(jnp.float32)

    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    rows = jax.jit(lambda leaves: {name: first_row(leaf) for name, leaf in leaves.items() if leaf.size})(leaves)
    digest = hashlib.sha256()
    for name in sorted(leaves):
        digest.update(f"{name}{leaves[name].shape}".encode())
        digest.update(np.asarray(rows[name]).tobytes() if name in rows else b"")
    return digest.hexdigest()[:16]


# Reading ------------------------------------------------------------------------------------------


def available(dataset: epath.PathLike, split: str) -> tuple[Feature, ...]:
    """The features of a dataset that are complete."""
    return tuple(feature for feature in FEATURES if (folder_of(dataset, feature, split) / COMPLETE).exists())


def open_features(
    dataset: epath.PathLike, split: str, feature: Feature, *, fingerprint: str, settings: Mapping[str, Any], model: str | None = None
) -> Features:
    """Open one complete feature and see that it is what is asked for.

    Args:
        fingerprint: of the dataset's index, as it is now.
        settings: `settings_of(feature, cfg)`.
        model: `model_fingerprint` of the encoder that a run would use instead; None where there is none to compare with.
    Raises:
        InputError: it is not there, not complete, or was computed from other data, with other settings or another model. Names both.
    """
    folder = folder_of(dataset, feature, split)
    again = f"compute it again (python -m data_pipeline.precompute {dataset} --split {split} --features {feature} --replace)"
    if not (folder / COMPLETE).exists():
        begun = (folder / PLAN).exists()
        raise InputError(
            f"{folder}: feature {feature} is not complete; run the same command of data_pipeline.precompute again, it goes on where it stopped"
            if begun
            else f"{dataset} has no feature {feature} of split {split}; compute it: python -m data_pipeline.precompute {dataset} --features {feature}"
        )
    plan = Plan.from_json((folder / PLAN).read_text(), folder / PLAN)
    for what, stored, wanted in (("feature", plan.feature, feature), ("split", plan.split, split), ("dataset fingerprint", plan.dataset, fingerprint)):
        if stored != wanted:
            raise InputError(f"{folder} was computed for {what} {stored}, the dataset here is {wanted}; {again}")
    for name, wanted in settings.items():
        if (stored := plan.settings.get(name)) != wanted:
            raise InputError(
                f"{folder} was computed with {name} {stored}, the run asks for {name} {wanted}; change the setting, leave the feature out, or {again}"
            )
    if model is not None and model != plan.model:
        raise InputError(f"{folder} was computed with a model of fingerprint {plan.model}, the run's has {model}; use the same weights, or {again}")
    return Features(folder, plan)


class Features:
    """One complete feature, read row by row. Threads may share it; worker processes get a copy that opens the files themselves."""

    def __init__(self, folder: epath.Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self.rows = _open_rows(folder)
        self._constants: dict[str, np.ndarray] = {}
        self._heads = {
            (group.name, rows): len(_header(self.plan, group, rows)) for group in plan.groups for rows in {len(group.part(n)) for n in (0, group.parts - 1)}
        }

    def __reduce__(self):
        return Features, (self.folder, self.plan)

    def read(self, record: int, item: int = 0) -> np.ndarray:
        """The values of a record, as stored. item: number of the caption; for arcface 0 is the target's face, 1 the inline identity's."""
        if not 0 <= record < self.plan.records:
            raise IndexError(f"record {record} of {self.plan.records}")
        first = int(self.rows[record])
        row, end = first + item, int(self.rows[record + 1]) if len(self.rows) > self.plan.records else first + 1
        if not first <= row < end:
            raise IndexError(f"{self.folder}: record {record} has no item {item}")
        number = int(np.searchsorted(self.plan.starts, row, side="right")) - 1
        return self._row(self.plan.groups[number], row - int(self.plan.starts[number]))

    def constant(self, name: str) -> np.ndarray:
        """The one row of a group such as "empty" or "black-1152x864"."""
        if name not in self._constants:
            group = next((group for group in self.plan.groups if group.name == name), None)
            if group is None:
                raise InputError(f"{self.folder} holds no {name}; it has {', '.join(group.name for group in self.plan.groups)}")
            self._constants[name] = self._row(group, 0)
        return self._constants[name]

    def _row(self, group: Group, row: int) -> np.ndarray:
        number = row // group.part_rows
        path, rows, size = part_path(self.folder, group, number), len(group.part(number)), self.plan.row_bytes(group)
        with path.open("rb") as file:
            file.seek(self._heads[group.name, rows] + (row % group.part_rows) * size)
            found = file.read(size)
        if len(found) != size:
            raise InputError(f"{path} is damaged: it ends too early; remove it with {COMPLETE} beside its folder and run data_pipeline.precompute again")
        return np.frombuffer(found, self.plan.dtype).reshape(group.shape)


def _open_rows(folder: epath.Path) -> np.ndarray:
    path = folder / "rows.npy"
    try:
        if _is_local(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:  # a bucket cannot be mapped
            return np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); copy the feature again, or compute it again with --replace") from error


# Writing ------------------------------------------------------------------------------------------


def part_path(folder: epath.Path, group: Group, number: int) -> epath.Path:
    return folder / group.name / f"{number:05d}.npy"


def begin(folder: epath.Path, plan: Plan, rows: np.ndarray) -> None:
    """Write the plan, or go on with the same one that is there already. Several processes may call it at once.

    rows: (records,) or (records + 1,) integers, see `Features.read`.
    Raises InputError where the folder holds something else, with what differs.
    """
    path = folder / PLAN
    if path.exists():
        stored = Plan.from_json(path.read_text(), path)
        mine = Plan.from_json(plan.to_json(), path)  # as JSON would give it back
        for field in dataclasses.fields(Plan):
            a, b = getattr(stored, field.name), getattr(mine, field.name)
            if a != b:
                raise InputError(
                    f"{folder} was begun with {field.name} {_brief(a)}, this run has {_brief(b)}; use the same command as before, or --replace to begin anew"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    narrow = np.uint32 if plan.starts[-1] < 2**32 else np.uint64
    _write(folder / "rows.npy", lambda file: np.save(file, rows.astype(narrow)))
    _write(path, lambda file: file.write(plan.to_json().encode()))


def finished(folder: epath.Path, plan: Plan) -> set[tuple[str, int]]:
    """Group and number of the parts that are there. One listing a group, since asking for each file takes hours in a bucket."""
    names = {group.name: {path.name for path in (folder / group.name).iterdir()} if (folder / group.name).exists() else set() for group in plan.groups}
    return {(group.name, number) for group, number in plan.parts() if part_path(folder, group, number).name in names[group.name]}


def write_part(folder: epath.Path, plan: Plan, group: Group, number: int, values: np.ndarray) -> None:
    """Write one part. It appears under its name only when it is whole."""
    expected = (len(group.part(number)), *group.shape)
    if values.shape != expected:
        raise ValueError(f"part {number} of {group.name} has shape {values.shape}; {expected} is needed")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=plan.dtype)
    if not np.isfinite(stored).all():
        reason = "are not finite" if not np.isfinite(values).all() else f"do not fit {plan.dtype}; store them as float32"
        raise InputError(f"{plan.feature}: values of {group.name}, rows {group.part(number)}, {reason}")
    (folder / group.name).mkdir(parents=True, exist_ok=True)

    def write(file):
        file.write(_header(plan, group, len(stored)))
        file.write(stored.data)

    _write(part_path(folder, group, number), write)


def seal(folder: epath.Path, plan: Plan) -> int:
    """Mark the feature as complete if it is; returns how many parts are missing (other processes may be at them)."""
    missing = sum(group.parts for group in plan.groups) - len(finished(folder, plan))
    if not missing and not (folder / COMPLETE).exists():
        for litter in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):  # of runs that were killed
            litter.unlink(missing_ok=True)
        (folder / COMPLETE).touch()
    return missing


def _header(plan: Plan, group: Group, rows: int) -> bytes:
    """The beginning of a part's .npy file."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(plan.dtype))
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": (rows, *group.shape)})
    return out.getvalue()


def _write(path: epath.Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that appears whole. The temporary name is this process's own."""
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        write(file)
        if _is_local(path):
            file.flush()
            os.fsync(file.fileno())  # or else a power failure could leave a name without its contents
    partial.replace(path)


def _is_local(path: epath.Path) -> bool:
    return "://" not in str(path)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}..."
