"""Selecting the files, and writing three folders and a manifest of what went where, and why."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .cleaning import is_test, rejection
from .held_out import choose_standard, choose_third_party, name_order, standard_part
from .overlap import HeldOutIndex
from .packages import Package, read_packages, read_standard_library

MOST_BYTES = 2_000_000
"""Of one package, unless asked otherwise, lest few large ones set the style."""
MOST_TEST_BYTES = 500_000
"""Of one package's tests, which repeat themselves."""
MOST_OVERLAP = 0.3
"""A training file that shares more with held-out files is a copy."""

_OVERLAPS_SHOWN = 20


class HeldOut(NamedTuple):
    """Held-out texts by name, and the top-level names they come from."""

    standard_names: tuple[str, ...]
    standard: dict[str, bytes]
    third_party_name: str
    third_party: dict[str, bytes]


def build(wheels: Path, out: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Write ``train``, ``heldout_stdlib``, ``heldout_thirdparty`` and ``manifest.json``.

    Args:
      wheels: folder of wheels and source archives.
      out: folder to write to; must not hold any of the four.
      most_bytes: of one package; the standard library is taken whole.

    Returns:
      The manifest.

    Raises:
      ValueError: see `read_packages`, `choose_third_party`; or `out` holds an older corpus.
    """
    outputs = [out / name for name in ("train", "heldout_stdlib", "heldout_thirdparty")]
    for path in (*outputs, out / "manifest.json"):
        if path.exists():
            raise ValueError(f"out: {path} exists, expected a new place; remove it")
    standard = read_standard_library()
    packages = list(read_packages(wheels))
    permissive = [package for package in packages if package.licence is not None]
    held_out = hold_out(standard, permissive)
    train, report = select_training(standard, permissive, held_out, most_bytes=most_bytes)
    for folder, files in zip(
        outputs, (train, held_out.standard, held_out.third_party), strict=True
    ):
        for name, contents in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
    manifest = {
        "held_out_standard_library": list(held_out.standard_names),
        "held_out_third_party": held_out.third_party_name,
        **{
            path.name: {"files": len(files), "bytes": sum(map(len, files.values()))}
            for path, files in zip(
                outputs, (train, held_out.standard, held_out.third_party), strict=True
            )
        },
        **report,
        "left_out_for_licence": [
            f"{package.name} {package.version}" for package in packages if package.licence is None
        ],
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def hold_out(standard: Package, packages: Iterable[Package]) -> HeldOut:
    """Choose what to hold out and take the files of it that are not tests and not rejected."""
    packages = list(packages)
    names = choose_standard(standard)
    third_party = choose_third_party(packages)
    chosen = next(package for package in packages if package.name == third_party)
    return HeldOut(
        names,
        {
            str(path): contents
            for path, contents in standard.files.items()
            if standard_part(path, names) == "held out" and rejection(contents) is None
        },
        third_party,
        {
            str(path): contents
            for path, contents in chosen.files.items()
            if not is_test(path) and rejection(contents) is None
        },
    )


def select_training(
    standard: Package, packages: Iterable[Package], held_out: HeldOut, *, most_bytes: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The training files by name, and the parts of the manifest that are about them."""
    texts = {**held_out.standard, **held_out.third_party}
    selection = _Selection(texts)
    rest = {
        path: contents
        for path, contents in standard.files.items()
        if standard_part(path, held_out.standard_names) == "train"
    }
    rows = [selection.take(standard._replace(files=rest), sum(map(len, rest.values())))]
    rows += [
        selection.take(package, most_bytes)
        for package in packages
        if package.name != held_out.third_party_name
    ]
    shared = sorted(selection.shared, key=lambda row: -max(row["contained"], row["covered"]))
    return selection.train, {
        "packages": rows,
        "near_duplicates_removed": selection.copies,
        "largest_overlaps_kept": shared[:_OVERLAPS_SHOWN],
        "share_of_held_out_shingles_in_training": round(selection.index.share_trained(), 4),
    }


class _Selection:
    """The training files taken so far, and what they may not repeat."""

    def __init__(self, held_out: Mapping[str, bytes]) -> None:
        self.index = HeldOutIndex({name: text.decode() for name, text in held_out.items()})
        self.train: dict[str, bytes] = {}
        self.copies: list[dict[str, Any]] = []
        self.shared: list[dict[str, Any]] = []
        self._seen = {_digest(contents) for contents in held_out.values()}

    def take(self, package: Package, limit: int) -> dict[str, Any]:
        """Take files of one package, code before tests, each by `name_order`; its manifest row."""
        reasons: Counter[str] = Counter()
        files = total = tests = 0
        for path in sorted(package.files, key=lambda path: (is_test(path), name_order(str(path)))):
            contents, name = package.files[path], f"{package.name}/{path}"
            if total + len(contents) > limit:
                reason: str | None = "package limit"
            elif is_test(path) and tests + len(contents) > MOST_TEST_BYTES:
                reason = "test limit"
            else:
                reason = rejection(contents) or self._repetition(name, contents)
            if reason is not None:
                reasons[reason] += 1
                continue
            self.train[name] = contents
            files += 1
            total += len(contents)
            tests += len(contents) if is_test(path) else 0
        return {
            "package": package.name,
            "version": package.version,
            "licence": package.licence,
            "files": files,
            "bytes": total,
            "left_out": dict(sorted(reasons.items())),
        }

    def _repetition(self, name: str, contents: bytes) -> str | None:
        """Why a good file may not be taken all the same; marks it as taken if it may."""
        digest = _digest(contents)
        if digest in self._seen:
            return "exact duplicate"
        text = contents.decode()
        overlap = self.index.overlap(text)
        shares = {
            "contained": round(overlap.contained, 3),
            "covered": round(overlap.covered, 3),
        }
        row = {"file": name, "held_out": overlap.held_out, **shares}
        if max(overlap.contained, overlap.covered) > MOST_OVERLAP:
            self.copies.append(row)
            return "near-duplicate of held-out"
        if overlap.held_out:
            self.shared.append(row)
        self.index.mark_trained(text)
        self._seen.add(digest)
        return None


def _digest(contents: bytes) -> bytes:
    return hashlib.sha256(contents).digest()
