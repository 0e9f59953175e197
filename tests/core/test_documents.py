import os
from pathlib import Path

import pytest
from pypdf import PdfWriter

from shoal.core import documents
from shoal.core.documents import read_documents
from shoal.core.errors import InputError


def pdf(text: str, title: str = "") -> bytes:
    """A one-page PDF written by hand."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (%s) >>" % title.encode(),
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (count, table, count, len(out))
    )


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_one(path: Path) -> documents.Document:
    (document,) = read_documents([path]).documents
    return document


def test_text_and_code_are_kept_as_they_are(tmp_path: Path) -> None:
    text = read_one(write(tmp_path / "note.txt", "One two.\r\n\r\nThree é.\n"))
    assert text.text == "One two.\n\nThree é.\n"
    assert (text.kind, text.words, text.title, text.note) == ("text", 4, "note", "")
    assert text.name == str(tmp_path / "note.txt")
    code = read_one(write(tmp_path / "a.py", "def f():\n\treturn 1\n"))
    assert (code.kind, code.text) == ("code", "def f():\n\treturn 1\n")


def test_markdown_is_named_by_its_first_heading(tmp_path: Path) -> None:
    document = read_one(write(tmp_path / "x.md", "intro\n\n# The *title* #\n\n## Later\n"))
    assert (document.kind, document.title) == ("markdown", "The *title*")


def test_html_gives_headings_paragraphs_lists_and_tables_but_no_scripts(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>A page</title><style>p{}</style></head><body>
    <nav>Home</nav><h1>Top</h1><script>alert('no')</script><!-- hidden -->
    <p>First <b>bold</b>
      text.<br>Next line.</p><div>Loose<p>Inner</p>after</div>
    <ul><li>one</li><li>two</li></ul><table><tr><th>a</th><th>b</th></tr>
    <tr><td>1</td><td>2</td></tr></table><pre>  keep
      this</pre></body></html>"""
    document = read_one(write(tmp_path / "page.html", page))
    assert document.title == "A page"
    assert document.text == (
        "# Top\n\nFirst bold text.\nNext line.\n\nLoose\n\nInner\n\nafter\n\n"
        "- one\n- two\n\na | b\n1 | 2\n\n  keep\n      this"
    )


def test_html_declares_its_encoding(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><p>caf\u00e9</p>'.encode("latin-1")
    document = read_one(write(tmp_path / "page.htm", page))
    assert (document.text, document.note) == ("café", "")


def test_pdf_text_and_title(tmp_path: Path) -> None:
    document = read_one(write(tmp_path / "x.pdf", pdf("Hello from a page.", "Greeting")))
    assert (document.kind, document.text) == ("pdf", "Hello from a page.")
    assert document.title == "Greeting"


def test_other_encodings_are_read_and_the_guess_is_stated(tmp_path: Path) -> None:
    guessed = read_one(write(tmp_path / "w.txt", "caf\u00e9 \u201cquoted\u201d".encode("cp1252")))
    assert guessed.text == "café “quoted”"
    assert "Windows-1252" in guessed.note and "byte 3" in guessed.note
    marked = read_one(write(tmp_path / "u.txt", "wide é".encode("utf-16")))
    assert (marked.text, marked.note) == ("wide é", "")
    signed = read_one(write(tmp_path / "s.txt", b"\xef\xbb\xbfplain"))
    assert signed.text == "plain"


def test_folders_are_walked_in_order_and_what_is_skipped_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.md", "a")
    write(tmp_path / "sub" / "c.txt", "c")
    write(tmp_path / ".git" / "config", "x")
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / "__pycache__" / "m.txt", "x")
    write(tmp_path / "image.png", b"\x89PNG\r\n\x1a\n\0\0\0")
    write(tmp_path / "empty.txt", " \n")
    write(tmp_path / "broken.pdf", "%PDF-1.4 nothing follows")
    reading = read_documents([tmp_path])
    assert [Path(d.name).relative_to(tmp_path).as_posix() for d in reading.documents] == [
        "a.md",
        "b.txt",
        "sub/c.txt",
    ]
    reasons = {Path(s.name).name: s.reason for s in reading.skipped}
    assert reasons.keys() == {
        ".git",
        ".hidden.txt",
        "__pycache__",
        "image.png",
        "empty.txt",
        "broken.pdf",
    }
    assert "binary" in reasons["image.png"] and "broken PDF" in reasons["broken.pdf"]
    assert reading.words == 3


def test_names_are_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "docs" / "in" / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    assert [d.name for d in read_documents(["docs"]).documents] == ["docs/in/a.txt"]
    assert [d.name for d in read_documents(["./docs/in/a.txt"]).documents] == ["docs/in/a.txt"]


def test_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "a")
    (tmp_path / "link.txt").symlink_to(first)
    reading = read_documents([first, tmp_path, tmp_path])
    assert [d.name for d in reading.documents] == [str(first)]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.txt", "x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    reading = read_documents([tmp_path])
    assert len(reading.documents) == 1
    assert {Path(s.name).name for s in reading.skipped} == {"up", "self"}


def test_a_pipe_in_a_folder_is_skipped_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    os.mkfifo(tmp_path / "pipe")
    (skipped,) = read_documents([tmp_path]).skipped
    assert "not a regular file" in skipped.reason


def encrypted() -> bytes:
    import io

    writer = PdfWriter()
    writer.add_blank_page(width=72, height=72)
    writer.encrypt("secret", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.bin", b"\x7fELF\0\0\0\0", "binary file"),
        ("b.txt", b"\x01\x02\x03\x04\x05\x06text", "binary file"),
        ("t.txt", b"caf\xe9 \x81", "UTF-8"),
        ("e.txt", b"", "is empty"),
        ("x.pdf", b"%PDF-1.4\n1 0 obj <<", "broken PDF"),
        ("cut.pdf", pdf("long enough to be cut in the middle")[:300], "broken PDF"),
        ("blank.pdf", pdf(""), "without text"),
        ("locked.pdf", encrypted(), "encrypted PDF"),
    ],
)
def test_a_bad_file_gets_one_sentence(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        read_documents([path])
    message = str(caught.value)
    assert message.startswith(str(path)) and words in message
    assert message.endswith(".") and "\n" not in message


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "report.md", "x")
    with pytest.raises(InputError, match=r"no file or folder .*Did you mean 'report\.md'\?"):
        read_documents([tmp_path / "raport.md"])


def test_folders_without_text_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds nothing that can be read"):
        read_documents([tmp_path])
    write(tmp_path / "x.bin", b"\0")
    with pytest.raises(InputError, match=r"x\.bin is a binary file"):
        read_documents([tmp_path])
    with pytest.raises(InputError, match="nothing to read"):
        read_documents([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders(tmp_path: Path) -> None:
    locked = write(tmp_path / "locked" / "x.txt", "x")
    write(tmp_path / "a.txt", "a")
    locked.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_documents([locked])
    locked.parent.chmod(0)
    try:
        (skipped,) = read_documents([tmp_path]).skipped
    finally:
        locked.parent.chmod(0o755)
    assert "cannot be opened" in skipped.reason


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = write(tmp_path / "big.txt", "x")
    os.truncate(big, documents.MAX_BYTES + 1)
    with pytest.raises(InputError, match="more than 64"):
        read_documents([big])
    monkeypatch.setattr(documents, "MAX_FILES", 2)
    for name in "abc":
        write(tmp_path / "many" / name, name)
    with pytest.raises(InputError, match="more than 2 files"):
        read_documents([tmp_path / "many"])
