"""Make a reveal.js deck of every notebook, to be shown offline: `python tools/slides.py [folder]`.

On a slide is what has a slide type, as JupyterLab sets it; a cell without one is left out. Cells
look as on the book's pages, nbconvert makes the slides, and tools/site/slides/slides.js cuts those
that are longer than a screen.
"""

import html
import re
import shutil
import sys
from pathlib import Path

import lecture
import mdbook_ipynb
import nbformat
import site_assets
from nbconvert import SlidesExporter
from nbformat import NotebookNode

import notebooks

LOOK = notebooks.ROOT / "tools" / "site" / "slides"
REVEAL = Path("node_modules/reveal.js/dist")
FOLDED = re.compile(r"<details\b.*?</details>", re.DOTALL)  # what a reader opens when wanted
PAGE_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\([\w-]+\.md(#[\w-]*)?\)")

INDEX = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Diffusion, Derived: slides</title>
<link rel="stylesheet" href="katex.css">
<link rel="stylesheet" href="slides.css">
<body class="index">
<h1>Diffusion, Derived</h1>
<ul>
{decks}
</ul>
<p>Space or Page Down goes on, Page Up goes back, the right arrow skips to the next section; Esc
shows all slides, F fills the screen, B blackens it. For a PDF add <code>?print-pdf</code> to a
deck's address, and print.</p>
</body>
</html>
"""


def main(target: Path) -> None:
    fill(target)
    images = mdbook_ipynb.Images(target / "images")
    exporter = SlidesExporter(
        template_file="deck.html.j2",
        extra_template_paths=[str(LOOK)],
        exclude_anchor_links=True,
    )
    decks = []
    for path in notebooks.find([]):
        talk = lecture_of(notebooks.read(path), images)
        if talk.cells:
            page, _ = exporter.from_notebook_node(talk)
            name, title = f"{path.stem}.html", html.escape(talk.metadata.title)
            (target / name).write_text(page, encoding="utf-8")
            decks.append(f'<li><a href="{name}">{title}</a></li>')
    images.drop_unused()
    (target / "index.html").write_text(INDEX.format(decks="\n".join(decks)), encoding="utf-8")
    print(f"{len(decks)} decks: open {target / 'index.html'}")


def fill(target: Path) -> None:
    """Put beside the decks what they need in a browser."""
    target.mkdir(parents=True, exist_ok=True)
    site_assets.bundle(notebooks.ROOT)
    built = notebooks.ROOT / "build" / "site"
    reveal = notebooks.ROOT / REVEAL
    for file in (
        *(built / "katex.css", built / "katex.js", reveal / "reveal.css", reveal / "reveal.js"),
        *(LOOK / "slides.css", LOOK / "slides.js"),
    ):
        shutil.copyfile(file, target / file.name)


def lecture_of(notebook: NotebookNode, images: mdbook_ipynb.Images) -> NotebookNode:
    """Return the cells that have a role, each as the Markdown of its page in the book."""
    course = notebook.metadata["course"]
    cells = [cell for cell in notebook.cells if lecture.role(cell) in lecture.SHOWN]
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(
                markdown(cell, images),
                id=cell.id,
                metadata={"slideshow": cell.metadata["slideshow"]},
            )
            for cell in cells
        ],
        metadata={"title": f"{course['number']:02} · {course['title']}"},
    )


def markdown(cell: NotebookNode, images: mdbook_ipynb.Images) -> str:
    if cell.cell_type == "code":
        text = "\n\n".join(mdbook_ipynb.code_cell(cell, images))
        text = re.sub(r"\n{3,}", "\n\n", text)  # a slide is short
    else:
        text = PAGE_LINK.sub(r"\g<text>", mdbook_ipynb.with_math(cell.source))
        text = mdbook_ipynb.NOTEBOOK_LINK.sub(r"](\g<stem>.html)", text)
    return FOLDED.sub("", text)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else notebooks.ROOT / "build" / "slides"))
