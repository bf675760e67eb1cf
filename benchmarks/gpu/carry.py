"""Carry run folders from one machine to another, in pieces of a size that can be sent: the run goes on there.

    python -m benchmarks.gpu.carry runs/gpu/* --out home           # there, before the machine is gone
    python -m benchmarks.gpu.carry --unpack home --runs runs/gpu   # on the next one; then the same command goes on

What goes on has the same bits as a run without a break, on the same kind of card. A checkpoint has the weights, their
moving average and two moments of Adam for each, and the bits of numbers do not compress. ``--light`` carries a third of
that and less: weights of nine binary digits, the moments of second order of three, and none of first order, which
Adam has again after ten steps; such a run goes on with nearly the same weights, not with the same bits. Packing for it
leaves the run folder itself as it is.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlab.errors import RunError
from fedlab.files import write_atomically
from fedlab.runs.checkpoints import Checkpoints

PIECE_MB = 16.0
CHUNK = 4_000_000  # bytes that one thread compresses
FILTERS = [  # numbers of four bytes: the place of a byte in its number says more than the byte before it
    {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": CHUNK, "lc": 0, "lp": 2, "pb": 2}
]
FRACTION_DIGITS = 23  # binary, of a float32
LIGHT_DIGITS = 8  # of weights
SQUARE_DIGITS = 2  # of Adam's moments of second order, whose roots divide steps
SUFFIX = ".tar.xz."  # and the number of a piece
NEEDLESS = ("checkpoints", ".lock", ".reserve", "report.html")  # the newest checkpoint is added by itself


def rounded(numbers: Tensor, digits: int) -> Tensor:
    """Return float32 numbers with so many binary digits of their fractions, rounded to the nearest; others as they are.

    >>> rounded(torch.tensor([1.3, -0.1]), 2).tolist()
    [1.25, -0.09375]
    """
    if numbers.dtype != torch.float32 or not bool(numbers.isfinite().all()):
        return numbers
    cut = FRACTION_DIGITS - digits
    bits = numbers.contiguous().view(torch.int32)
    short = ((bits + (1 << (cut - 1))) >> cut << cut).view(torch.float32)
    return torch.where(short.isfinite(), short, numbers)  # the largest numbers would become infinite


def lightened(value: Any, name: str = "") -> Any:
    """Return a state with what a light copy keeps of its tensors; ``name`` is the key that it stands under."""
    if isinstance(value, Tensor):
        if name == "exp_avg":
            return torch.zeros_like(value)
        return rounded(value, SQUARE_DIGITS if name == "exp_avg_sq" else LIGHT_DIGITS)
    if isinstance(value, Mapping):
        return {key: lightened(item, str(key)) for key, item in value.items()}
    return type(value)(lightened(item) for item in value) if isinstance(value, list | tuple) else value


def shared(value: Any, seen: dict[bytes, Tensor]) -> Any:
    """Return a state in which equal tensors are one, as a model and its average often are: torch saves it once."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        key = sha256(f"{content.dtype}{tuple(content.shape)}".encode())
        key.update(content.flatten().view(torch.uint8).numpy().tobytes())
        return seen.setdefault(key.digest(), value)
    if isinstance(value, Mapping):
        return {key: shared(item, seen) for key, item in value.items()}
    return type(value)(shared(item, seen) for item in value) if isinstance(value, list | tuple) else value


def separate(value: Any) -> Any:
    """Return a state in which no two tensors share memory."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: separate(item) for key, item in value.items()}
    return type(value)(separate(item) for item in value) if isinstance(value, list | tuple) else value


def saved(state: Any) -> bytes:
    """Return a state as torch saves it."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def packed(run: Path, light: bool) -> bytes:
    """Return a run folder with its newest checkpoint as a compressed archive.

    Raises
    ------
    RunError
        When it is no run folder, or has no checkpoint to go on from.
    """
    if not (run / "config.toml").is_file():
        raise RunError(f"{run} is no run folder: it has no config.toml")
    found = Checkpoints(run).latest()
    if found is None:
        raise RunError(f"{run} has no checkpoint, so there is nothing to go on from; start it anew instead")
    server_round, state = found
    content = saved(shared(lightened(state) if light else state, {}))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(run.iterdir()):
            if path.name not in NEEDLESS:
                archive.add(path, f"{run.name}/{path.name}")
        header = tarfile.TarInfo(f"{run.name}/{Checkpoints(Path()).path(server_round)}")
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
    whole = stream.getvalue()
    parts = [whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:  # streams of xz one after another are one file of xz
        return b"".join(threads.map(lambda part: lzma.compress(part, lzma.FORMAT_XZ, filters=FILTERS), parts))


def pack(run: Path, out: Path, piece_mb: float = PIECE_MB, light: bool = False) -> list[Path]:
    """Write a run folder as pieces ``NAME.tar.xz.00``, ``.01``, ... in the place of older ones, and return their paths.

    Raises
    ------
    RunError
        As :func:`packed`.
    """
    run = run.resolve()
    content, size = packed(run, light), int(piece_mb * 1e6)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{run.name}{SUFFIX}*"):
        old.unlink()
    pieces = []
    for number, start in enumerate(range(0, len(content), size)):
        pieces.append(out / f"{run.name}{SUFFIX}{number:02}")
        write_atomically(pieces[-1], content[start : start + size])
    return pieces


def pack_small(run: Path, out: Path) -> tuple[list[Path], bool]:
    """Pack a run folder whole if that is one piece, else as a light copy; return the pieces, and whether it is light.

    Raises
    ------
    RunError
        As :func:`packed`.
    """
    pieces = pack(run, out)
    return (pieces, False) if len(pieces) == 1 else (pack(run, out, light=True), True)


def runs_of(folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield name and archive of each run whose pieces lie in the folders, which may be spread over them."""
    pieces: dict[str, dict[int, Path]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}*"))):
        name, _, number = path.name.rpartition(SUFFIX)
        if number.isdecimal():
            pieces.setdefault(name, {})[int(number)] = path
    for name, found in sorted(pieces.items()):
        yield name, b"".join(found[number].read_bytes() for number in sorted(found))


def unpack(name: str, content: bytes, runs: Path) -> Path:
    """Put a run where it can go on, and return its folder.

    Raises
    ------
    RunError
        When its folder is there already, or a piece is missing or damaged.
    """
    if (runs / name).exists():
        raise RunError(f"{runs / name} is there already; move it away, or name another folder of runs")
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as temporary:
        try:
            with tarfile.open(fileobj=io.BytesIO(lzma.decompress(content))) as archive:
                archive.extractall(temporary, filter="data")
        except (EOFError, lzma.LZMAError, tarfile.TarError) as error:
            raise RunError(f"the pieces of {name} make no archive ({error}): is one missing?") from None
        folder = Path(temporary) / name
        checkpoints = Checkpoints(folder)
        for server_round in checkpoints.rounds():
            write_atomically(checkpoints.path(server_round), saved(separate(checkpoints.load(server_round))))
        shutil.move(folder, runs / name)
    return runs / name


def main() -> int:
    """Pack or unpack the runs that are named; one that cannot be packed does not hold up the others."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu.carry",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="run folders to pack")
    parser.add_argument("--out", type=Path, default=Path("home"), help="folder of the pieces")
    parser.add_argument("--piece-mb", type=float, default=PIECE_MB, help="size of a piece, at most")
    parser.add_argument("--light", action="store_true", help="a third of the size: nearly the same weights")
    parser.add_argument("--unpack", nargs="+", type=Path, metavar="DIR", help="folders of pieces to unpack")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where to unpack")
    asked = parser.parse_args()
    if bool(asked.folders) == bool(asked.unpack):
        parser.error("name run folders to pack, or --unpack DIR with pieces")
    failed = False
    works: list[Callable[[], list[Path]]] = [
        *(partial(pack, run, asked.out, asked.piece_mb, asked.light) for run in asked.folders),
        *(partial(unpacked, name, content, asked.runs) for name, content in runs_of(asked.unpack or [])),
    ]
    for work in works:
        try:
            for path in work():
                size = "" if path.is_dir() else f"  {path.stat().st_size / 1e6:.1f} MB"
                print(f"{path}{size}")
        except (RunError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
    if not works:
        print(f"no pieces (NAME{SUFFIX}00) in {', '.join(map(str, asked.unpack))}", file=sys.stderr)
    return int(failed or not works)


def unpacked(name: str, content: bytes, runs: Path) -> list[Path]:
    """Return what :func:`unpack` does as a list, as :func:`pack` does."""
    return [unpack(name, content, runs)]


if __name__ == "__main__":
    sys.exit(main())
