"""From a file's bytes to readable text: plain text, Markdown, source code, HTML, PDF.

Pure functions over bytes; :mod:`shoal.core.documents` walks folders and words the errors.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from typing import Literal

Kind = Literal["text", "markdown", "html", "pdf", "code"]

MAX_PAGES = 5_000
"""Pages of one PDF that are read at most; a longer one is refused."""

_SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys(
        (
            *(".py", ".pyi", ".ipynb", ".js", ".mjs", ".ts", ".jsx", ".tsx", ".java", ".kt", ".c"),
            *(".h", ".cc", ".cpp", ".hpp", ".cu", ".cs", ".go", ".rs", ".rb", ".php", ".swift"),
            *(".scala", ".lua", ".pl", ".r", ".jl", ".hs", ".ml", ".clj", ".ex", ".erl", ".sh"),
            *(".bash", ".sql", ".css", ".scss", ".json", ".yaml", ".yml", ".toml", ".ini", ".xml"),
        ),
        "code",
    ),
    ".pdf": "pdf",
}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PROBE = 8192
_DROPPED = ("head", "script", "style", "noscript", "template", "svg", "iframe", "nav", "button")
_BLOCKS = (
    *("[document]", "html", "body", "main", "article", "section", "header", "footer", "aside"),
    *("div", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd", "pre"),
    *("blockquote", "table", "caption", "tr", "figure", "figcaption", "form", "fieldset"),
    *("details", "summary", "address"),
)
_BREAK = "\0"  # a line break that outlives the collapsing of white space
_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$", re.MULTILINE)


class Unreadable(Exception):
    """Why these bytes give no text; ends a sentence of the kind "x.pdf …"."""


@dataclass(frozen=True, slots=True)
class Extract:
    """Readable text; ``title`` is empty where the file names none.

    ``note`` states a guess that was made on the way (an encoding), or is empty.
    """

    kind: Kind
    text: str
    title: str = ""
    note: str = ""


def extract(name: str, data: bytes) -> Extract:
    """The text of a file; its kind follows from its suffix, a PDF's from its first bytes.

    Raises :class:`Unreadable` for binary data, undecodable text, encrypted or broken PDFs.
    """
    kind = "pdf" if data.startswith(b"%PDF-") else _SUFFIXES.get(PurePath(name).suffix.lower())
    if kind == "pdf":
        return _pdf(data)
    if _binary(data):
        raise Unreadable("is a binary file: give text, Markdown, HTML, PDF or source code")
    if kind == "html":
        return _html(data)
    text, note = decode(data)
    found = _HEADING.search(text) if kind == "markdown" else None
    return Extract(kind or "text", text, found[1] if found else "", note)


def decode(data: bytes) -> tuple[str, str]:
    """Text of UTF-8 (or UTF-16 with a mark) bytes, else of Windows-1252, which the note states.

    Line ends become ``\\n``. Raises :class:`Unreadable` where neither encoding fits.
    """
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    note = ""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise Unreadable(
                f"is not text in {encoding.upper()} (byte {error.start}) nor in Windows-1252: "
                "convert it to UTF-8"
            ) from None
        note = f"read as Windows-1252, as byte {error.start} is not {encoding.upper()}"
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def _binary(data: bytes) -> bool:
    """A NUL byte near the start, or many control characters, and no UTF-16 mark."""
    if any(data.startswith(bom) for bom, _ in _BOMS):
        return False
    probe = data[:_PROBE]
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in probe)
    return b"\0" in probe or controls > len(probe) / 20


def _html(data: bytes) -> Extract:
    """Headings as Markdown headings, list items as dashes, table rows with bars, the rest as
    paragraphs; scripts, styles and navigation are dropped."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(data, "html.parser")
    guessed = soup.original_encoding not in (None, "ascii", "utf-8", soup.declared_html_encoding)
    note = f"read as {soup.original_encoding}, a guess" if guessed else ""
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    for tag in soup.find_all("br"):
        tag.replace_with(_BREAK)
    for cell in soup.find_all(["td", "th"]):
        if cell.find_next_sibling(["td", "th"]):
            cell.insert_after(" | ")
    if not title and (heading := soup.find("h1")):
        title = heading.get_text(" ", strip=True)
    text = ""
    before = ""
    for block, content in _blocks(soup):
        tight = block == before and block in ("li", "tr")
        text += ("\n" if tight else "\n\n") * bool(text) + content
        before = block
    return Extract("html", text, title, note)


def _blocks(soup: object) -> Iterator[tuple[str, str]]:
    """Name and text of the blocks of a page, in order, empty ones left out."""
    from bs4.element import NavigableString, Tag

    assert isinstance(soup, Tag)
    # Comments, declarations and the like are subclasses, and no text of the page.
    strings = [found for found in soup.find_all(string=True) if type(found) is NavigableString]
    owners = [(found.find_parent(_BLOCKS) or soup, found) for found in strings]
    for _, group in groupby(owners, key=lambda pair: id(pair[0])):
        pairs = list(group)
        block = pairs[0][0]
        assert isinstance(block, Tag)
        raw = "".join(found for _, found in pairs)
        if block.name == "pre":
            text = raw.replace(_BREAK, "\n").strip("\n").rstrip()
        else:
            text = "\n".join(filter(None, (" ".join(line.split()) for line in raw.split(_BREAK))))
        if text.strip():
            yield block.name, _mark(block.name) + text


def _mark(block: str) -> str:
    if re.fullmatch("h[1-6]", block):
        return "#" * int(block[1]) + " "
    return "- " if block == "li" else ""


def _pdf(data: bytes) -> Extract:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every blemish it repairs
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("is an encrypted PDF: save a copy without a password")
        if len(reader.pages) > MAX_PAGES:
            raise Unreadable(f"has {len(reader.pages)} pages, more than {MAX_PAGES}: split it")
        title = (reader.metadata.title if reader.metadata else None) or ""
        pages = [page.extract_text().strip() for page in reader.pages]
    except Unreadable:
        raise
    except (DependencyError, FileNotDecryptedError) as error:
        raise Unreadable("is an encrypted PDF: save a copy without a password") from error
    except Exception as error:  # a broken file can lead the parser anywhere
        raise Unreadable(f"is a broken PDF ({_short(error)})") from error
    text = "\n\n".join(filter(None, pages))
    if not text:
        raise Unreadable(f"is a PDF of {len(pages)} pages without text (scanned?): give it OCR")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Extract("pdf", whole, str(title).strip())


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return (words if len(words) <= 80 else words[:79] + "…") or type(error).__name__
