"""Material: what the members of a team read, whole or in parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Material:
    """A text, and the parts it falls into for members that read one part each.

    Without parts the whole text is the only part.
    """

    text: str = ""
    parts: tuple[str, ...] = ()

    @property
    def pieces(self) -> tuple[str, ...]:
        """The parts, at least one."""
        return self.parts or (self.text,)


def as_material(material: Material | str) -> Material:
    """A plain text is material without parts."""
    return Material(material) if isinstance(material, str) else material
