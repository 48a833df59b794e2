"""`lit-gen reference`: computes, lists, verifies, exports and imports the statistics of real images."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from lit_gen.cli import help
from lit_gen.core.errors import UserError
from lit_gen.core.progress import image_progress
from lit_gen.core.text import closest, printable
from lit_gen.experiment.real_data import RealData, keys_without_evaluation, parse_real_data
from lit_gen.metrics.feature_nets import FeatureNet
from lit_gen.metrics.moments import Moments
from lit_gen.metrics.npz_statistics import flaw, read_npz_moments, write_npz_moments
from lit_gen.metrics.reference import compute_moments, find_reference
from lit_gen.metrics.reference_files import ENDING, ReferenceFacts, ReferenceFile, read_reference, write_reference

SAME = 1e-3
"""Largest difference, in standard deviations, that another device or version of torch may make in the moments."""


def reference(arguments: list[str]) -> None:
    """Run one of the actions of the verb."""
    action = arguments[0] if arguments else ""
    if action not in ACTIONS:
        raise UserError(
            f"{action or 'reference'}: not an action of lit-gen reference; "
            + closest(action, ACTIONS, f"choose one of {', '.join(ACTIONS)}")
        )
    options, keys = help.reference_parser(action).parse_known_args(arguments[1:])
    ACTIONS[action](options, keys)


def _compute(options: argparse.Namespace, keys: list[str]) -> None:
    real = parse_real_data(keys, "reference compute", help.reference_parser("compute").names)
    net = _on_device(real.net())
    found = find_reference(real.data, options.split, net, options.folder)
    if found is None:
        facts = ReferenceFacts.of(real.data, options.split, net)
        write_reference(facts.path(options.folder), _moments(real, options.split, net), facts)
        found = read_reference(facts.path(options.folder))
    _print_file(found)


def _list(options: argparse.Namespace, keys: list[str]) -> None:
    _refuse(keys, "list")
    if not options.folder.is_dir():
        raise UserError(f"{printable(options.folder)}: not a folder; give the folder of reference statistics")
    rows = [("data", "split", "feature net", "n", "shape", "state", "file")]
    for path in sorted(options.folder.glob(f"*{ENDING}")):
        try:
            found = read_reference(path)
        except UserError as error:
            rows.append(("?", "?", "?", "?", "?", str(error).partition("statistics ")[2].partition("; ")[0], path.name))
            continue
        data, split, net = found.named
        shape = "?" if found.facts is None else "x".join(map(str, found.facts.image_shape))
        rows.append((data, split, net, str(found.moments.n), shape, _state(found), path.name))
    widths = [max(len(printable(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _verify(options: argparse.Namespace, keys: list[str]) -> None:
    found = read_reference(options.file)
    if (reason := flaw(found.moments)) is not None:
        raise UserError(f"{printable(options.file)}: {reason}; compute it again")
    if keys:
        _compare(found, parse_real_data(keys, "reference verify", help.reference_parser("verify").names))
    _print_file(found)


def _compare(found: ReferenceFile, real: RealData) -> None:
    """Raise a UserError unless the moments are those of the data, computed again."""
    net, file = _on_device(real.net()), printable(found.path)
    split = found.named[1]
    if found.facts is not None:
        expected = ReferenceFacts.of(real.data, split, net, found.facts.imported)
        for name in ("fingerprint", "image_shape", "feature_net", "version", "resize"):
            ours, theirs = getattr(expected, name), getattr(found.facts, name)
            if ours != theirs:
                key = "data.source" if name in ("fingerprint", "image_shape") else "feature_net"
                raise UserError(f"{key}: its {name} is {ours}, but that of {file} is {theirs}; choose that of the file")
    moments, wrong = _moments(real, split, net), "compute or import it again"
    if (moments.n, len(moments.mean)) != (found.moments.n, len(found.moments.mean)):
        raise UserError(
            f"{file}: {found.moments.n} images with {len(found.moments.mean)} features, but the data have {moments.n} "
            f"with {len(moments.mean)}; choose other data, or {wrong}"
        )
    scale = moments.cov.diagonal().sum().sqrt().clamp(min=1e-12)
    mean = float((moments.mean - found.moments.mean).norm() / scale)
    cov = float((moments.cov - found.moments.cov).norm() / moments.cov.norm().clamp(min=1e-12))
    if max(mean, cov) > SAME:
        raise UserError(f"{file}: the mean differs by {mean:.2g} and the covariance by {cov:.2g}; {wrong}")
    print(f"computed again: the mean differs by {mean:.1g} standard deviations, the covariance by a share of {cov:.1g}")


def _export(options: argparse.Namespace, keys: list[str]) -> None:
    _refuse(keys, "export")
    _check_npz(options.out, "--out")
    found = read_reference(options.file)
    write_npz_moments(options.out, found.moments)
    print(f"mu, sigma and n of {found.moments.n} images, {len(found.moments.mean)} features -> {options.out}")


def _import(options: argparse.Namespace, keys: list[str]) -> None:
    real = parse_real_data(keys, "reference import", help.reference_parser("import").names)
    if real.feature_net is None:
        raise UserError(
            "feature_net: import needs the net of the statistics; add, for example, --feature_net Inception"
        )
    net = real.net()
    moments, digest = read_npz_moments(options.file, net.width, len(real.data.images(options.split)))
    facts = ReferenceFacts.of(real.data, options.split, net, imported=digest)
    path = facts.path(options.folder)
    if path.exists() and not options.replace:
        raise UserError(f"{printable(path)}: there are statistics of this data already; add --replace to replace them")
    write_reference(path, moments, facts)
    _print_file(read_reference(path))


ACTIONS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "compute": _compute,
    "list": _list,
    "verify": _verify,
    "export": _export,
    "import": _import,
}


def _moments(real: RealData, split: str, net: FeatureNet) -> Moments:
    images = real.data.images(split)
    what = f"reference statistics of {real.data.name}"
    with image_progress(what, len(images), at_once=False) as progress, keys_without_evaluation():
        return compute_moments(images, net, progress=progress.add if progress else None)


def _on_device(net: FeatureNet) -> FeatureNet:
    return net.to("cuda" if torch.cuda.is_available() else "cpu")


def _print_file(found: ReferenceFile) -> None:
    data, split, net = found.named
    width = len(found.moments.mean)
    what = f"{data}/{split}, {found.moments.n} images, {width} {net} features"
    print(printable(f"{what}, {_state(found)}\n  {found.path}", lines=True))


def _state(found: ReferenceFile) -> str:
    checksum = "checksum ok" if found.has_checksum else "no checksum"
    if found.facts is not None and found.facts.imported is not None:
        return f"{checksum}, imported from {found.facts.imported[:12]}"
    return checksum


def _refuse(keys: list[str], action: str) -> None:
    if keys:
        parser = help.reference_parser(action)
        advice = closest(keys[0].partition("=")[0], parser.names, "lit-gen reference --help lists the options")
        raise UserError(f"{keys[0]}: lit-gen reference {action} has no such option; {advice}")


def _check_npz(path: Path, option: str) -> None:
    if path.suffix != ".npz":
        raise UserError(f"{option}: {printable(path)} does not end in .npz; give a name that does")
