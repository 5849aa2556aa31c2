"""A checkpoint is complete or absent, and its bytes are those that were written.

Each rank hashes the shards that it wrote (`hashes-RANK.json`); when all have, rank 0 joins the hashes,
with those of the small files, into `complete.json`, whose rename makes the folder a checkpoint. At load
the ranks share the files out, hash them again and agree on the result. A folder without the marker is a
save that was cut short.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from megatron_cpt.config.errors import IntegrityFault, StorageFault
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import all_agree, barrier
from megatron_cpt.runs.durable import sync_file, sync_folder, write_json

MARKER = "complete.json"
# A rank writes two files of shards: Megatron-Core's writer has two processes.
HASHED_AT_ONCE = 2


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (checkpoint / MARKER).is_file()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leave_hashes(checkpoint: Path, rank: int) -> None:
    """Writes the hashes of the shards that a rank wrote, from any process of that rank."""
    shards = sorted((checkpoint / "shards").glob(f"__{rank}_*"))
    with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
        digests = threads.map(file_hash, shards)
        hashes = {str(path.relative_to(checkpoint)): digest for path, digest in zip(shards, digests, strict=True)}
    write_json(checkpoint / f"hashes-{rank:05}.json", hashes)


def seal(checkpoint: Path) -> None:
    """Marks a folder as complete once every rank has left its hashes. Every rank calls it.

    Raises:
        StorageFault: a rank has left none.
    """
    barrier()
    parts = [checkpoint / f"hashes-{rank:05}.json" for rank in range(groups.world_size())]
    missing = [rank for rank, part in enumerate(parts) if not part.is_file()]
    if not all_agree(not missing):
        raise StorageFault(
            f"{checkpoint}: ranks {missing} left no hashes of their shards; the checkpoint before it is whole"
        )
    if groups.rank() == 0:
        hashes = {name: digest for part in parts for name, digest in orjson.loads(part.read_bytes()).items()}
        for part in parts:
            part.unlink()
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and path.suffix != ".distcp":
                sync_file(path)
                hashes[str(path.relative_to(checkpoint))] = file_hash(path)
        sync_folder(checkpoint / "shards")
        sync_folder(checkpoint / "hf")
        write_json(checkpoint / MARKER, {"sha256": dict(sorted(hashes.items()))})
        sync_folder(checkpoint.parent)
    barrier()


def verify(checkpoint: Path) -> None:
    """Compares every file with the hash that its writer left. Every rank calls it and raises alike.

    Raises:
        IntegrityFault: a file is missing, or its bytes are not those that were written.
    """
    hashes = read_hashes(checkpoint)
    mine = list(hashes.items())[groups.rank() :: groups.world_size()]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as threads:
        intact = threads.map(lambda entry: is_intact(checkpoint / entry[0], entry[1]), mine)
        broken = [name for (name, _), found in zip(mine, intact, strict=True) if not found]
    if not all_agree(not broken):
        found = ", ".join(broken) or "found by another rank"
        raise IntegrityFault(
            f"{checkpoint}: files missing or changed since they were written: {found}. "
            "Restore them, or remove this folder to go on from an earlier checkpoint."
        )


def read_hashes(checkpoint: Path) -> dict[str, str]:
    """The hashes in the marker, by file name relative to the checkpoint. Raises IntegrityFault."""
    try:
        hashes = orjson.loads((checkpoint / MARKER).read_bytes())["sha256"]
        names = [Path(name) for name in hashes]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFault(f"{checkpoint / MARKER}: not a readable marker ({error})") from error
    outside = [str(name) for name in names if name.is_absolute() or ".." in name.parts]
    if outside or not hashes:
        raise IntegrityFault(f"{checkpoint / MARKER}: names no files, or files outside the checkpoint: {outside}")
    return hashes


def is_intact(path: Path, digest: str) -> bool:
    """Whether a file is there with the bytes that were written."""
    try:
        return file_hash(path) == digest
    except OSError:
        return False
