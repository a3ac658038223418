"""proto/README.md as tables: heading → rows of cells."""

from __future__ import annotations

from pathlib import Path

PAGE = (Path(__file__).parents[2] / "proto" / "README.md").read_text()


def sections() -> dict[str, str]:
    """Heading, without its marks, → the text up to the next heading of any level."""
    found: dict[str, str] = {}
    heading, fenced = "", False
    for line in PAGE.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            heading = line.lstrip("#").strip()
            assert heading not in found, f"two headings {heading!r}"
            found[heading] = ""
        elif heading:
            found[heading] += line + "\n"
    return found


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head; cells without spaces around and without backquotes."""
    rows: list[list[str]] = []
    for line in sections()[heading].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]
