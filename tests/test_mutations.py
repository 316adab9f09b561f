"""Mutated files through the readers: the documented error or a whole result, and nothing else.

    python -m tests.test_mutations 10000

runs that many in one process and prints what happened; the tests run a smaller share. A case is a function of its number.
"""

import codecs
import io
import json
import pickle
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from infu_jax.convert import safetensors, source, torch_writer
from infu_jax.convert.errors import ConversionError

SECONDS = 10  # for one file
MEMORY = 1 << 30  # bytes, of the whole process


def shapes():
    return {"a.weight": (4, 6), "a.bias": (6,), "scalar": (), "none": (0, 3), "b.weight": (2, 3, 2)}


def originals(folder: Path) -> dict[str, bytes]:
    """Sound files of every kind, by the name they must have."""
    draw = np.random.default_rng(0)
    kinds = (np.float32, np.float16, safetensors.DTYPES["BF16"], safetensors.DTYPES["F8_E4M3"], np.int64)
    tensors = {k: draw.standard_normal(s).astype(d) for (k, s), d in zip(shapes().items(), kinds, strict=True)}
    safetensors.write_file(folder / "model.safetensors", tensors, {"format": "pt"})
    safetensors.write_sharded(folder / "sharded", "model", tensors, 60, {"format": "pt"})
    torch_writer.write_file(folder / "model.bin", {"image_proj": tensors})
    found = {name: (folder / name).read_bytes() for name in ("model.safetensors", "model.bin")}
    found["model.safetensors.index.json"] = (folder / "sharded" / "model.safetensors.index.json").read_bytes()
    found["old.pt"] = older(tensors["a.weight"])
    return found


def older(values: np.ndarray) -> bytes:
    """A file of the format before torch 1.6: five pickles and the storages."""
    view = torch_writer._encode({"w": values}, [], "x").replace(b"X\x03\x00\x00\x00cpu\x8a\x01\x18t", b"X\x03\x00\x00\x00cpu\x8a\x01\x18Nt")
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, machine)] + [b"\x80\x02" + view + b".", pickle.dumps(["0"], 2)]
    return b"".join(parts) + struct.pack("<q", values.size) + values.tobytes()


NUMBERS = (0, 1, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = (
    None,
    True,
    -1,
    1e308,
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "model.safetensors",
    "x" * 5000,
    [],
    {},
    [[]],
    [2**60, 2**60],
    [-1],
    [1.5],
    "F32",
    "F4",
    "BOOL",
    *NUMBERS,
)
OPS = b"(.012FGIJKLMNPQRSTUVX]abcdefghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x90\x92\x93\x94\x95"
HOSTILE = (
    b"cos\nsystem\n(S'touch HARM'\ntR",
    b"cbuiltins\nexec\n(X\x04\x00\x00\x00pass",
    b"cposix\nsystem\n",
    b"c__builtin__\neval\n",
    b"\x8c\x02os\x8c\x06system\x93",
)


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """One to four changes: to the bytes, to the JSON, to the pickle inside a zip archive, or to the archive's structure."""
    if name.endswith("json") and rng.random() < 0.7:
        return json.dumps(mutate_json(json.loads(data), rng)).encode()
    if name.endswith("safetensors") and rng.random() < 0.6:
        size = int.from_bytes(data[:8], "little")
        text = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), rng)).encode()
        length = len(text) if rng.random() < 0.8 else rng.choice(NUMBERS)
        return struct.pack("<Q", length % 2**64) + text + data[8 + size :]
    if name.endswith("bin") and rng.random() < 0.7:
        return mutate_zip(data, rng)
    return mutate_bytes(data, rng)


def mutate_bytes(data: bytes, rng: random.Random, tokens: tuple[bytes, ...] = ()) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.5 else min(rng.randrange(200), len(out))
        match rng.randrange(7 if tokens else 6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
            case 2:
                del out[at : at + rng.choice((1, 4, 50, 10**6))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 9, 100))] * rng.choice((1, 2, 50))
            case 4:
                out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3, 20))))
            case 5 if at < len(out):
                out[at] = rng.choice(OPS)
            case 6:
                out[at:at] = rng.choice(tokens)
    return bytes(out)


def mutate_json(value, rng: random.Random):
    """The same JSON with something else in some place."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        n = rng.randrange(len(value))
        return [*value[:n], mutate_json(value[n], rng), *value[n + 1 :]] if rng.random() < 0.7 else value + [rng.choice(VALUES)] * rng.choice((1, 70))
    key = rng.choice(list(value))
    match rng.randrange(4):
        case 0:
            return {k: v for k, v in value.items() if k != key}
        case 1:
            return {**value, rng.choice(("", "__metadata__", "x\ud800", "a.weight", "../x")): rng.choice((value[key], *VALUES[:6]))}
        case _:
            return {**value, key: mutate_json(value[key], rng)}


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    out, n = io.BytesIO(), rng.randrange(len(records))
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in records:
            if name.endswith("data.pkl") and rng.random() < 0.8:
                content = mutate_bytes(content, rng, HOSTILE)
            elif name == records[n][0]:
                name = rng.choice((name, "../" + name, "/abs", "archive/constants.pkl", "archive/code/x.py", "other/data.pkl"))
                content = rng.choice((content, b"", content * 3, content[:-1], b"\0" * 10**5))
            archive.writestr(name, content)
    return out.getvalue() if rng.random() < 0.8 else mutate_bytes(out.getvalue(), rng)


def read(path: Path) -> int:
    """Open and look at every number; gives the count."""
    return sum(int(np.asarray(x).reshape(-1).view(np.uint8).sum() >= 0) for x in source.open_tensors(path).values())


WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
    "exec",
    "os.remove",
    "os.rename",
    "os.mkdir",
)


def run(count: int, start: int = 0) -> Counter:
    """Read the cases `start` to `start + count`; raises where one does what it must not."""
    happened, reading = Counter(), []

    def watch(event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if reading and (event in WATCHED or writes):
            reading.append(f"{event} {args}")

    def late(*_):
        raise TimeoutError(f"a file was not read within {SECONDS} s")

    for name in ("raw_unicode_escape", "unicode_escape", "latin-1"):
        codecs.lookup(name)  # Python itself loads them when pickletools first needs them
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory() as folder:
        sound = originals(Path(folder))
        for name, data in sound.items():  # they are sound, and the case with an index has its shards beside it
            (Path(folder) / "sharded" / name).write_bytes(data)
            assert read(Path(folder) / "sharded" / name) >= 1, name
        for case in range(start, start + count):
            rng = random.Random(case)
            name = rng.choice(list(sound))
            path = Path(folder) / "sharded" / name
            path.write_bytes(mutate(sound[name], name, rng))
            signal.alarm(SECONDS)
            reading.append("begin")
            try:
                read(path)
                happened[name, "read"] += 1
            except ConversionError as e:
                assert "\n" not in str(e) and len(str(e)) < 2000, f"case {case}: {e}"
                happened[name, "refused"] += 1
            except BaseException as e:
                raise AssertionError(f"case {case}, {name}: {type(e).__name__}: {e}") from e
            finally:
                signal.alarm(0)
                did = reading[1:]
                reading.clear()
            assert not did, f"case {case}, {name}: {did}"
    return happened


def test_mutated_files():
    """In a process of its own, so that its memory is that of the readers."""
    ran = subprocess.run([sys.executable, "-m", "tests.test_mutations", "1500"], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    counts = {tuple(line.split()[:2]): int(line.split()[2]) for line in ran.stdout.splitlines()[:-1]}
    # Most are refused, some harmless changes are not, of every kind of file.
    assert sum(counts.values()) == 1500 and len({name for name, _ in counts}) == 4
    assert all(counts[name, "refused"] > counts.get((name, "read"), 0) for name, _ in counts), counts


if __name__ == "__main__":
    began = time.perf_counter()
    for (name, what), count in sorted(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).items()):
        print(f"{name} {what} {count}")
    # Not getrusage: its peak includes that of the process that started this one.
    memory = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(f"{time.perf_counter() - began:.1f} s, {memory / 1e6:.0f} MB")
    if memory > MEMORY:
        raise SystemExit(f"the readers took {memory / 1e6:.0f} MB of memory")
