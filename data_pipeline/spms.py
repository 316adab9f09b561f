"""The TFDS builder: shards of records, written apart and in any order, become one dataset that TFDS, Grain and `records.open_records` read.

TFDS's own way of writing passes everything through one process, starts again after a kill, and serialises equal records to unequal bytes.
So shards are written by `write_shard`, each a file that appears whole or not at all, and the builder gives them their names and states
what there is. No TensorFlow is needed to write or to read.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Integer

from data_pipeline import records
from data_pipeline.index import make_index, shards_fingerprint, write_index
from infu_jax.cli import appearing

DESCRIPTION = "Pictures of people with captions and faces, for training identity-preserving portraits. See data_pipeline/README.md of infu_jax."
# One record a group: random reads decompress nothing else. Pictures are compressed already; writing is 3 times faster without trying again.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True)
class Shard:
    """A finished ArrayRecord file under a name of its own."""

    path: Path
    records: int
    sha256: str
    """Of its records, in their order."""


@dataclass(frozen=True, eq=False)
class Split:
    """All N records of a split: where they are, and what the index says of each."""

    shards: Sequence[Shard]
    persons: Integer[np.ndarray, "N"]
    """Numbers from 0 without gaps."""
    sizes: Integer[np.ndarray, "N 2"]
    flags: Integer[np.ndarray, "N"]
    captions: Integer[np.ndarray, "N"]


def write_shard(path: Path, examples: Iterable[bytes]) -> Shard:
    """Writes serialised records to `path`. Equal records give equal bytes; half a file is never seen under that name."""
    digest, count = hashlib.sha256(), 0
    with appearing(path, replace=True) as partial:
        writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for example in examples:
                writer.write(example)
                digest.update(len(example).to_bytes(8, "little") + example)
                count += 1
        finally:
            writer.close()
    return Shard(path, count, digest.hexdigest())


class Spms(tfds.core.dataset_builder.FileReaderBuilder):
    """Records of people: single-person-single-sample photos, and single-person-multiple-sample pairs."""

    VERSION = tfds.core.Version(records.VERSION)
    RELEASE_NOTES = {records.VERSION: "First version."}
    url_infos = None  # nothing is downloaded; TFDS would look for checksums with importlib_resources, which it does not install

    def __init__(self, *, data_dir: Path, shards: Mapping[str, Sequence[Shard]]):
        self._shards = shards
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        digests = {split: hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest() for split, shards in self._shards.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=records.features(),
            disable_shuffling=True,  # people stay together
            metadata=tfds.core.MetadataDict(sha256=digests),
        )

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig | None = None) -> None:
        """Called by TFDS with a temporary data folder, which it renames afterwards."""
        infos = []
        for split, shards in self._shards.items():
            template, size = self._get_filename_template(split), 0
            for number, shard in enumerate(shards):
                size += shard.path.stat().st_size
                shard.path.rename(template.sharded_filepath(shard_index=number, num_shards=len(shards)))
            lengths = [shard.records for shard in shards]
            infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
        self.info.set_splits(tfds.core.splits.SplitDict(infos))


def assemble(folder: Path, splits: Mapping[str, Split]) -> Path:
    """Moves the shards of all splits into a dataset below `folder`, which is cleared first, adds the index, and returns the dataset's path.

    The path can be renamed to anything. Splits must have records.
    """
    shutil.rmtree(folder, ignore_errors=True)
    builder = Spms(data_dir=folder, shards={name: split.shards for name, split in splits.items()})
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads; there are none
        builder.download_and_prepare()
    directory = Path(builder.data_path)
    for name, split in splits.items():
        write_index(directory, name, make_index(split.persons, split.sizes, split.flags, split.captions, shards_fingerprint(directory, name)))
    return directory
