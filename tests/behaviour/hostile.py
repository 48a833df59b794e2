"""Damages files of a run directory as a disk, an editor or an attacker would: each damage is a function of a number."""

import csv
import io
import json
import os
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

CANARY = "executed"
"""A file of this name in the working directory says that foreign code has run."""
DEEP: Any = None
for _ in range(500):
    DEEP = [DEEP]
NAMES = (
    *("[/red]", "[bold]x", "$x^{$", "\\frac", "_hidden", "</script><script>x", "<b>", "a|b", "`", "=1+1", "@SUM(A1)"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb", "\u202egnp.exe", "\ud800", "x" * 100_000, "", " ", "\x00"),
    *("../../../../tmp/x", "{{ 7 * 7 }}", "%n%s", "${oc.env:HOME}"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.0, -0.5, 2**63, 10**400, -(10**30), 1e300, 5e-324, 1e99, float("inf"), float("-inf")),
    *(float("nan"), [], {}, [[]], [None], {"name": None}, {"": 0}, [1] * 50, DEEP, "12", "nan", "1e999"),
)


class Bad:
    """Runs a command as it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def damage(run: Path, number: int) -> str:
    """Damage one to three files of a run; return what was done."""
    rng = random.Random(number)
    return "; ".join(_damage_one(run, rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _damage_one(run: Path, rng: random.Random) -> str:
    files = sorted(path for path in run.rglob("*") if path.suffix in OF_SUFFIX and path.is_file())
    weights = [4 if path.suffix in (".json", ".ckpt", ".npz", ".csv") else 1 for path in files]
    (path,) = rng.choices(files, weights)
    way = rng.choice([*OF_SUFFIX[path.suffix] * 3, *OF_ANY])
    try:
        what = way(path, rng)
    except Exception:  # what was damaged before raises any of a dozen
        what = "was damaged before"
    return f"{path.relative_to(run)}: {way.__name__} {what or ''}"[:200]


def truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def flip_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 20))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(bytes(content))


def other_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice((b"", b"\xff\xfe{}", b"[" * 100_000, b"{}", b"null", b"\x00" * 1000, b"PK\x03\x04")))


def fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, rng: random.Random) -> str:
    target = rng.choice(("/dev/zero", "/dev/full", path.name, "/nowhere"))
    path.unlink()
    path.symlink_to(target)
    return target


def gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every key or index of a tree of objects and lists, with what holds it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(value, key) for key, _ in items] + [place for _, item in items for place in _places(item)]


def edit_tree(value: Any, rng: random.Random) -> str:
    """Replace, delete, add or rename something in a tree."""
    holder, key = rng.choice(_places(value))
    new = rng.choice([*NAMES, *VALUES, *NAMES])
    match rng.choice(("replace", "replace", "replace", "delete", "add", "rename")):
        case "replace":
            holder[key] = new
        case "delete":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = new
        case _ if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
    return f"{key!r:.40} {new!r:.40}"


def edit_json(path: Path, rng: random.Random) -> str:
    value = json.loads(path.read_text())
    what = edit_tree(value, rng)
    path.write_text(json.dumps(value))
    return what


def edit_yaml(path: Path, rng: random.Random) -> str:
    value = yaml.safe_load(path.read_text())
    what = edit_tree(value, rng)
    path.write_text(yaml.safe_dump(value))
    return what


def code_in_yaml(path: Path, rng: random.Random) -> str:
    """Name a function that runs a command, in the place of any setting."""
    value = yaml.safe_load(path.read_text())
    holder, key = rng.choice(_places(value))
    call = rng.choice(("os.system", "subprocess.getoutput", "os.popen"))
    holder[key] = {"class_path": call, "init_args": {"cmd": f"touch {CANARY}", "command": f"touch {CANARY}"}}
    path.write_text(yaml.safe_dump(value))
    return f"{key!r:.40} {call}"


def bomb_of_yaml(path: Path, rng: random.Random) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    path.write_text("\n".join([*lines, path.read_text()]))


def edit_csv(path: Path, rng: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(path.read_text())))
    row = rng.choice(rows)
    column = rng.randrange(len(row))
    numbers = ("nan", "inf", "1e999", "1e300", "-1", "9" * 400, "1_0", "٣")
    row[column] = rng.choice([*NAMES, *numbers]).replace("\ud800", "?")
    if rng.random() < 0.2:
        row.append("1")
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())
    return f"column {column}: {row[column]!r:.40}"


def edit_checkpoint(path: Path, rng: random.Random) -> str:
    value = torch.load(path, weights_only=True)
    holder, key = rng.choice([(value, "images_seen"), (value, "state_dict"), (value, "ema"), *_places(value)])
    ways: list[Any] = [
        None,
        [],
        {},
        "text",
        -1,
        2**70,
        float("nan"),
        True,
        torch.zeros(()),
        torch.zeros(1).expand(10**12),
        torch.full((3,), float("nan")),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
        {0: torch.zeros(1)},
    ]
    if isinstance(holder[key], torch.Tensor):
        like = holder[key]
        ways += [like.flatten()[:-1], torch.full_like(like, 7.0) * float("nan"), like.to(torch.int8), like[None]] * 3
    place = rng.randrange(len(ways) + 1)
    if place == len(ways):
        del holder[key]
    else:
        holder[key] = ways[place]
    torch.save(value, path)
    return f"{key!r:.40} {place}"


def code_in_checkpoint(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        path.write_bytes(pickle.dumps(Bad()))
    else:
        torch.save(torch.load(path, weights_only=True) | {"more": Bad()}, path)


def edit_samples(path: Path, rng: random.Random) -> str:
    way = rng.randrange(9)
    images: Any = np.load(path)["images"]
    if way == 0:
        images = np.array([Bad()], dtype=object)
    elif way == 1:
        images = images[:, :, :1]
    elif way == 2:
        images = images.astype(np.float32) * np.nan
    elif way == 3:
        images = images[:0]
    elif way == 4:
        images = np.zeros((1, 2, 70_000, 1), np.uint8)
    elif way == 5:
        images = images.astype("U3")
    elif way == 6:
        images = images[0]
    if way < 7:
        np.savez_compressed(path, images=images)
    elif way == 7:
        np.savez_compressed(path, pictures=images)
    else:  # a header that promises more than there is
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }".ljust(117) + "\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    return str(way)


def edit_picture(path: Path, rng: random.Random) -> None:
    """A picture that promises many pixels, or holds something else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = rng.choice((20_000, 3_000)).to_bytes(4, "big")
    head = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


Damage = Callable[[Path, random.Random], str | None]
OF_ANY: list[Damage] = [truncate, flip_bytes, other_bytes, fifo, folder, link, gone]
OF_SUFFIX: dict[str, list[Damage]] = {
    ".json": [edit_json],
    ".yaml": [edit_yaml, code_in_yaml, bomb_of_yaml],
    ".csv": [edit_csv],
    ".ckpt": [edit_checkpoint, code_in_checkpoint],
    ".npz": [edit_samples],
    ".png": [edit_picture],
}
