"""Catalogues by name: where their documents are had from, and how they are kept.

``aws`` and ``google`` are read out of wheels of PyPI, ``github`` out of a package of npm; what is
installed already is used, and whatever is fetched is verified by its SHA-256. Any other name is an
OpenAPI document, given as a file or a URL.

Files lie in ``tools/`` of the cache folder as ``NAME-DIGEST.sqlite``; the digest is of the source's
content and of the way it is imported, so nothing there is ever out of date.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from shoal.core.errors import InputError, nearest
from shoal.core.files import atomic_path, cache_folder, sha256
from shoal.core.records import ToolSpec
from shoal.models.fetching import Packaged, Progress, fetch_wheel
from shoal.tools import catalogue
from shoal.tools.catalogue import Catalogue, DamagedCatalogue
from shoal.tools.importers import botocore, discovery, openapi

REVISION = 2
"""Counts up when an importer writes something else for the same document."""

BOTOCORE = Packaged(
    requirement="botocore==1.44.5",
    wheel="botocore-1.44.5-py3-none-any.whl",
    wheel_sha256="8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
    wheel_bytes=16_555_415,
    member="botocore/data",
    member_sha256="",
)
GOOGLE = Packaged(
    requirement="google-api-python-client==2.202.0",
    wheel="google_api_python_client-2.202.0-py3-none-any.whl",
    wheel_sha256="aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
    wheel_bytes=17_148_227,
    member="googleapiclient/discovery_cache/documents",
    member_sha256="",
)
GITHUB = "@octokit/openapi@23.0.2"
GITHUB_MEMBER = "package/generated/api.github.com.json"
GITHUB_SHA256 = "829b4bebb19a53133289f7b0bc819f4f1118115821db2ca9f25e9ee995a7da2a"
NAMES = ("aws", "google", "github")

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class _Source:
    """What a catalogue is made of: a key of its content, and its tools."""

    key: str
    specs: Callable[[], Iterator[ToolSpec]]


def load(name: str, place: str | None = None, progress: Progress | None = None) -> Catalogue:
    """The catalogue of a name, imported now unless it is in the cache.

    place   file, folder or URL to read instead of what the name fetches; for names beside
            ``aws``, ``google`` and ``github`` an OpenAPI document, and needed

    Raises :class:`InputError` for a name without a place, and for documents nobody can read.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"A catalogue's name is like aws or my-api, not {name!r}.")
    source = _source(name, place, progress)
    digest = hashlib.sha256(f"{REVISION} {catalogue.FORMAT} {source.key}".encode()).hexdigest()
    target = _folder() / f"{name}-{digest[:16]}.sqlite"
    if target.exists():
        try:
            return Catalogue([target])
        except DamagedCatalogue:
            target.replace(target.with_suffix(".damaged"))
    made = catalogue.write(_counted(source.specs(), name, progress), target)
    if not len(made):
        made.close()
        target.unlink()
        raise InputError(f"The source of {name!r} describes no tool: check {place or name}.")
    for old in _folder().glob(f"{name}-{'?' * 16}.sqlite"):
        if old != target:
            old.unlink()
    return made


def imported() -> dict[str, Path]:
    """Catalogues in the cache by name."""
    found = sorted(_folder().glob("*.sqlite"), key=lambda path: path.stat().st_mtime)
    return {path.stem.rpartition("-")[0]: path for path in found}


def everything() -> Catalogue:
    """All catalogues in the cache as one; raises :class:`InputError` where there is none."""
    paths = imported()
    if not paths:
        raise InputError("No tools are imported yet: run 'shoal tools import aws' first.")
    return Catalogue([path for _, path in sorted(paths.items())])


def botocore_data(progress: Progress | None = None) -> Traversable:
    """The folder of service models, installed or out of the wheel."""
    spec = importlib.util.find_spec("botocore")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0], "data")
    return zipfile.Path(fetch_wheel(BOTOCORE, progress), f"{BOTOCORE.member}/")


def _folder() -> Path:
    return cache_folder() / "tools"


def _counted(specs: Iterator[ToolSpec], name: str, progress: Progress | None) -> Iterator[ToolSpec]:
    for count, spec in enumerate(specs, 1):
        if progress and count % 500 == 0:
            progress(f"Importing {name}", count, 0)
        yield spec


def _source(name: str, place: str | None, progress: Progress | None) -> _Source:
    if name == "aws":
        return _aws(place, progress)
    if name == "google":
        return _google(place, progress)
    if name == "github":
        return _openapi(name, place or str(_github(progress)))
    if place is None:
        raise InputError(
            f"What is {name!r}? Give {', '.join(NAMES)}, or a name with the file or URL of its "
            f"OpenAPI document.{nearest(name, NAMES)}"
        )
    return _openapi(name, place)


def _aws(place: str | None, progress: Progress | None) -> _Source:
    data: Traversable
    if place:
        data = _place(place, BOTOCORE.member)
        key, origin = _fingerprint(place), f"botocore {place}"
    else:
        data = botocore_data(progress)
        version = BOTOCORE.requirement.partition("==")[2]
        if importlib.util.find_spec("botocore") is not None:
            version = importlib.metadata.version("botocore")
        key, origin = f"botocore {version}", f"botocore {version}"
    return _Source(key, lambda: botocore.from_botocore(data, origin=origin))


def _google(place: str | None, progress: Progress | None) -> _Source:
    if place is None:
        place = str(fetch_wheel(GOOGLE, progress))
        key = GOOGLE.wheel_sha256
    else:
        key = _fingerprint(place)
    folder = _place(place, GOOGLE.member)
    return _Source(key, lambda: discovery.from_discovery_folder(folder))


def _openapi(name: str, place: str) -> _Source:
    document = openapi.read(place)
    key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return _Source(key, lambda: openapi.from_openapi(document, name=name))


def _place(place: str, member: str) -> Traversable:
    """A folder, or the folder ``member`` inside a wheel."""
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    try:
        return zipfile.Path(path, f"{member}/")
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{place} is neither a folder nor a wheel that can be read.") from error


def _fingerprint(place: str) -> str:
    """What changes when the files at a place do: a file's digest, a folder's sizes and times."""
    path = Path(place).expanduser()
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise InputError(f"There is no file or folder {place}.")
    facts = (
        f"{one.relative_to(path)} {one.stat().st_size} {one.stat().st_mtime_ns}\n"
        for one in sorted(path.rglob("*"))
        if one.is_file()
    )
    return hashlib.sha256("".join(facts).encode()).hexdigest()


def _github(progress: Progress | None) -> Path:
    """The description of GitHub's interface, out of npm's package, verified."""
    target = _folder() / "documents" / "api.github.com.json"
    if target.exists() and sha256(target) == GITHUB_SHA256:
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "GitHub's description comes in a package of npm, which is not installed: install npm, "
            "or give the file with --from."
        )
    if progress:
        progress(f"Fetching {GITHUB}", 0, 0)
    with tempfile.TemporaryDirectory(prefix="shoal-npm-") as name:
        command = [npm, "pack", "--silent", GITHUB]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        packages = list(Path(name).glob("*.tgz"))
        if done.returncode or not packages:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise InputError(f"npm could not fetch {GITHUB} ({said}): check the network.")
        try:
            with tarfile.open(packages[0]) as archive:
                inside = archive.extractfile(GITHUB_MEMBER)
                content = inside.read() if inside else b""
        except (tarfile.TarError, KeyError, OSError) as error:
            raise InputError(f"{GITHUB} does not hold {GITHUB_MEMBER}: {error}.") from error
    if (found := hashlib.sha256(content).hexdigest()) != GITHUB_SHA256:
        raise InputError(
            f"{GITHUB_MEMBER} of {GITHUB} is damaged or not the right one (SHA-256 {found[:12]}…, "
            f"expected {GITHUB_SHA256[:12]}…): try again."
        )
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return target
