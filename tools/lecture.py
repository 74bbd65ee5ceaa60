"""Which cells a lecture shows, by the slide types that JupyterLab sets; and the rules for them."""

from collections.abc import Iterator
from typing import Any

from nbformat import NotebookNode

SHOWN = ("slide", "subslide", "fragment", "-")  # "-": more of the same slide
HIDDEN = ("notes", "skip")


def role(cell: NotebookNode) -> str:
    """Return a cell's slide type; a cell without one is left out."""
    return cell.metadata.get("slideshow", {}).get("slide_type", "skip")


def breaches(book: Any) -> Iterator[tuple[str, str]]:
    """The slides begin with the title, and show of each widget the figure drawn before it."""
    if book.cells and role(book.cells[0]) != "slide":
        yield "notebook", "the first cell is a slide"
    drawn = "skip"
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        if role(cell) not in SHOWN + HIDDEN:
            yield cell.id, f"unknown slide type {role(cell)!r}"
        if "figure" in tags:
            drawn = role(cell)
        if "widget" in tags and drawn not in SHOWN:
            yield cell.id, "the figure before a widget is on the slides: give it a slide type"
