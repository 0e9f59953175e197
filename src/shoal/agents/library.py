"""Teams by name: the packaged ones, and files."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from shoal.agents.config import parse_team
from shoal.agents.team import Team
from shoal.core.errors import ConfigError, InputError, nearest


def packaged_teams() -> tuple[Team, ...]:
    """The teams that come with the package, by name."""
    return tuple(load_team(name) for name in _packaged())


def load_team(name: str | Path, *, folder: Path | None = None) -> Team:
    """The team in a file, or a packaged one by name.

    What ends in ``.toml``, contains a slash or is a Path is a file, relative to ``folder`` (or
    the current one). Raises :class:`InputError` for a file that cannot be read and
    :class:`ConfigError` for an unknown name (with the nearest) or a team that makes no sense.
    """
    return _load(name, folder or Path(), ())


@dataclass(frozen=True, slots=True)
class _Source:
    """A team's text, its name in errors, and the folder that its own team names start from."""

    text: str
    name: str
    folder: Path


def _load(name: str | Path, folder: Path, inside: tuple[str, ...]) -> Team:
    source = _find(name, folder)
    if source.name in inside:
        raise ConfigError(f"{source.name} contains itself: {' in '.join((source.name, *inside))}.")
    return parse_team(
        source.text,
        source=source.name,
        load=lambda inner: _load(inner, source.folder, (source.name, *inside)),
    )


def _find(name: str | Path, folder: Path) -> _Source:
    if isinstance(name, str) and not name.endswith(".toml") and "/" not in name:
        packaged = _packaged()
        if name not in packaged:
            raise ConfigError(
                f"There is no team {name!r}.{nearest(name, packaged)} Known: "
                f"{', '.join(packaged)}; or give the path of a .toml file."
            )
        file = resources.files("shoal.agents") / "teams" / f"{name}.toml"
        return _Source(file.read_text(encoding="utf-8"), name, folder)
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read the team file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The team file {path} is not text in UTF-8.") from error
    return _Source(text, str(path), path.parent)


def _packaged() -> tuple[str, ...]:
    files = (resources.files("shoal.agents") / "teams").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))
