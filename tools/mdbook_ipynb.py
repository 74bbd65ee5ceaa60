"""Turn the course's notebooks into the book's pages (an mdBook preprocessor, stdlib only).

mdBook hands over its chapters as JSON; those whose path ends in `.ipynb` hold a notebook. Each
comes back as Markdown: formulas as `<span class="math">` for KaTeX to render, code and outputs
from the notebook as stored, figures as files named by their content.
"""

import base64
import hashlib
import html
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import site_assets

Json = dict[str, Any]

# Code comes first: there a dollar is not a formula, and a hash not a heading.
FENCED = r"^[ ]*(?P<fence>`{3,}|~{3,})(?s:.*?)^[ ]*(?P=fence)[ ]*$"
HEADING = re.compile(rf"(?P<verbatim>{FENCED}) | (?P<heading>^\#{{1,6}}[ ].*)", re.X | re.M)
# A formula never crosses an empty line.
MATH = re.compile(
    rf"""(?P<verbatim>{FENCED} | (?P<tick>`+)(?!`)(?s:.+?)(?<!`)(?P=tick)(?!`) | \\\$)
       | \$\$(?P<display>(?:(?!\n\s*\n)(?s:.))+?)\$\$
       | \$(?P<inline>[^\s$](?:(?:(?!\n\s*\n)[^$])*[^\s$\\])?)\$(?!\d)(?P<after>[.,;:)?!]*)""",
    re.X | re.M,
)
# Code that a reader of the page opens when wanted; the derivation's own code stays in sight.
FOLDED = {"setup": "How it is set up", "recorded": "How it is read", "hide-input": "Code"}
SHORT = 40  # characters of a formula that is not to be broken over two lines
# What `tutorial_lib.checks` prints.
CLAIM = re.compile(
    r"^Claim (?P<number>\S+)  (?P<statement>.+)\n"
    r"  measured ≈ (?P<value>\S+)   (?P<bar>bar .+?)   PASS(?:\n  paper: (?P<paper>.+))?\n?",
    re.M,
)
VERDICT = re.compile(r"^.*  PASS\n?", re.M)
ALT = re.compile(r"\A# alt: *(?P<text>.*)\n(?:# caption: *(?P<caption>.*)\n)?\n*")
NOTEBOOK_LINK = re.compile(r"\]\((?P<stem>[\w-]+)\.ipynb(?P<anchor>#[\w-]*)?\)")

# A row of the coverage table: number, statement, notebook, cells.
COVERED = re.compile(
    r"^(?P<row>\| *\d\d\.\d+ *\|.*\|) *`?(?P<stem>\d\d_\w+)`? *\|(?P<cells>[\w`, -]+)\|$", re.M
)


def entities(tex: str) -> str:
    """Write every special character as an entity, so that no rule of Markdown can touch it."""
    plain = " 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(c if c in plain else f"&#{ord(c)};" for c in tex)


def with_math(markdown: str) -> str:
    """Replace the formulas of a Markdown text by elements that KaTeX renders in the browser."""

    def element(match: re.Match[str]) -> str:
        if match["verbatim"]:
            return match[0]
        if match["display"]:
            return f'<span class="math display">{entities(match["display"].strip())}</span>'
        formula = f'<span class="math inline">{entities(match["inline"].strip())}</span>'
        if not match["after"] and len(match["inline"]) > SHORT:
            return formula
        return f'<span class="unbroken">{formula}{match["after"]}</span>'

    return MATH.sub(element, markdown)


def text_of(field: str | list[str]) -> str:
    return field if isinstance(field, str) else "".join(field)


class Legend(NamedTuple):
    """What a figure says to those who do not see it, and to those who do."""

    alt: str
    caption: str


class Images:
    """The folder of figures, each named by its content."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, set[str]()
        folder.mkdir(exist_ok=True)

    def element(self, png: bytes, legend: Legend, size: Json) -> str:
        name = hashlib.sha256(png).hexdigest()[:16] + ".png"
        site_assets.write(self.folder / name, png)
        self.used.add(name)
        width, height = struct.unpack(">II", png[16:24])
        caption = with_math(legend.caption)
        return (
            f'<figure><img src="{self.folder.name}/{name}" alt="{html.escape(legend.alt)}" '
            f'width="{size.get("width", width)}" height="{size.get("height", height)}">'
            f"{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"
        )

    def drop_unused(self) -> None:
        """Remove the figures that only older builds showed."""
        for path in self.folder.glob("*.png"):
            if path.name not in self.used:
                path.unlink(missing_ok=True)


def block(tag: str, kind: str, text: str) -> str:
    escaped = html.escape(text.rstrip("\n"))
    marked = re.sub(r"\bPASS\b|^✓", r'<b class="pass">\g<0></b>', escaped, flags=re.MULTILINE)
    return f'<{tag} class="output {kind}">{marked}</{tag}>'


def output_markdown(output: Json, legend: Legend, images: Images) -> str:
    if output["output_type"] == "stream":
        return block("pre", output["name"], text_of(output["text"]))
    if output["output_type"] == "error":
        return block("pre", "error", f"{output['ename']}: {output['evalue']}")
    data = output["data"]
    if "image/png" in data:
        size = output.get("metadata", {}).get("image/png", {})
        return images.element(base64.b64decode(text_of(data["image/png"])), legend, size)
    if "text/html" in data:
        # An empty line would end the HTML block and hand the rest to Markdown.
        lines = (line for line in text_of(data["text/html"]).splitlines() if line.strip())
        return '<div class="output html">\n' + "\n".join(lines) + "\n</div>"
    for mime in ("text/markdown", "text/latex"):
        if mime in data:
            return with_math(text_of(data[mime]))
    return block("pre", "result", text_of(data["text/plain"]))


def fenced(source: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", source))])
    return f"{fence}python\n{source.rstrip()}\n{fence}"


def folded(kind: str, title: str, *parts: str) -> list[str]:
    return [f'<details class="{kind}"><summary>{title}</summary>', *parts, "</details>"]


def controls(cell: Json) -> str:
    """Name a widget's controls as `tutorial_lib.widgets` prints them without a kernel."""
    printed = (text_of(output.get("data", {}).get("text/plain", "")) for output in cell["outputs"])
    found = re.search(r"to explore: (?P<names>.+)", "\n".join(printed))
    return html.escape(found["names"]).replace(" · ", ", ") if found else "see its code"


def code_cell(cell: Json, images: Images) -> Iterator[str]:
    source, tags = text_of(cell["source"]), cell["metadata"].get("tags", [])
    alt = ALT.match(source)
    code = fenced(source[alt.end() :] if alt else source)
    legend = Legend(alt["text"], alt["caption"] or "") if alt else Legend("", "")
    shown = [output_markdown(output, legend, images) for output in cell["outputs"]]
    yield f'<div class="{" ".join(["cell", *tags])}" id="{cell["id"]}">'
    if "widget" in tags:
        yield f'<p class="note">In Jupyter this figure has sliders: {controls(cell)}.</p>'
        yield from folded("input quiet", "Code", code)
    elif "solution" in tags:
        yield from folded("solution", "Solution", code, *shown)
    elif "check" in tags:
        yield from verdicts(code, cell["outputs"], shown)
    elif "figure" in tags:
        yield from shown
        yield from folded("input quiet", "How it is drawn", code)
    elif folds := [FOLDED[tag] for tag in tags if tag in FOLDED]:
        yield from folded("input quiet", folds[0], code)
        yield from shown
    else:
        yield from (code, *shown)
    yield "</div>"


def typeset(printed: str) -> str:
    """Set plain text from a check as a page would: powers of ten raised, signs for digraphs."""
    text = html.escape(printed.replace("||", "‖").replace("<=", "≤").replace(">=", "≥"))
    text = re.sub(r"\b1e-0?(\d+)", r"10<sup>−\1</sup>", text)
    return re.sub(r"(\d)e-0?(\d+)", r"\1·10<sup>−\2</sup>", text)


def verdicts(code: str, outputs: list[Json], shown: list[str]) -> Iterator[str]:
    """Yield a check's claims in a sentence each; the other verdicts are folded with the code."""
    printed = "".join(text_of(o["text"]) for o in outputs if o["output_type"] == "stream")
    told = CLAIM.sub("", printed)
    if rest := VERDICT.sub("", told).strip("\n"):
        yield block("pre", "stdout", rest)
    for claim in CLAIM.finditer(printed):
        statement, value, bar = (typeset(claim[k]) for k in ("statement", "value", "bar"))
        yield (
            f'<p class="claim"><b class="pass">✓ {claim["number"]}</b> {statement}: '
            f"<b>{value}</b> <i>({bar})</i></p>"
        )
    passed = VERDICT.findall(told)
    count = f"{len(passed)} check{'s' if len(passed) > 1 else ''}"
    title = "How it is checked" + (f' <b class="pass">✓ {count}</b>' if passed else "")
    yield from folded("input quiet", title, code, block("pre", "stdout", printed))
    others = zip(outputs, shown, strict=True)
    yield from (text for output, text in others if output["output_type"] != "stream")


def markdown_cell(cell: Json) -> Iterator[str]:
    """Yield the text with the cell's id as an anchor, and ids for its other headings."""
    text = with_math(text_of(cell["source"]))

    def with_id(match: re.Match[str]) -> str:
        if match["verbatim"]:
            return match[0]
        slug = "-".join(re.findall(r"\w+", re.sub(r"<[^>]*>", "", match["heading"]).lower()))
        return f"{match['heading']} {{#{'section-' + slug if match.start() else cell['id']}}}"

    if not text.startswith("#"):
        yield f'<div id="{cell["id"]}"></div>'
    yield HEADING.sub(with_id, text)


def notebook_markdown(notebook: Json, name: str, images: Images) -> str:
    parts: list[str] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.extend(markdown_cell(cell))
        elif cell["cell_type"] == "code" and text_of(cell["source"]).strip():
            parts.extend(code_cell(cell, images))
    download = f'<p class="download"><a href="{name}" download>Download this notebook</a></p>'
    title, _, body = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{download}\n{body}\n"


def unbroken(numbers: str) -> str:
    """Keep a cell of numbers on one line."""
    return numbers.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}")


def claims_table(path: Path) -> str:
    """List the recorded claims: the paper's figure, the bar, and ours over every seed."""
    if not path.exists():
        sys.exit(
            "results/claims.json is missing: `make run` measures the claims that the book lists."
        )
    lines = ["| | Claim | The paper | Bar | Ours | Seeds |", "|---|---|---|---|---|---|"]
    for claim in json.loads(path.read_text(encoding="utf-8")):
        values = sorted(claim["values"].values())
        bars = ((">", claim["above"]), ("<", claim["below"]))
        cells = (
            claim["statement"],
            claim["paper"] or "–",
            unbroken(" and ".join(f"{sign} {bar:g}" for sign, bar in bars if bar is not None)),
            unbroken(" to ".join(dict.fromkeys(f"{end:.3g}" for end in (values[0], values[-1])))),
            str(len(values)),
        )
        number = f"[{claim['number']}]({claim['notebook']}.ipynb#{claim['cell']})"
        lines.append(f"| {number} | " + " | ".join(map(entities, cells)) + " |")
    return "\n".join(lines)


def with_cell_links(text: str) -> str:
    """Make the coverage table's notebooks and cells links to where they stand."""

    def linked(match: re.Match[str]) -> str:
        page = f"{match['stem']}.ipynb"
        cells = [cell.strip(" `") for cell in match["cells"].split(",")]
        links = ", ".join(f"[{cell}]({page}#{cell})" for cell in cells)
        return f"{match['row']} [{match['stem'][:2]}]({page}) | {links} |"

    return COVERED.sub(linked, text)


def chapters(items: list[Any]) -> Iterator[Json]:
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            yield item["Chapter"]
            yield from chapters(item["Chapter"]["sub_items"])


def convert(book: Json, root: Path, source: Path) -> None:
    images = Images(source / "images")
    pages = [chapter for chapter in chapters(book["items"]) if chapter["path"]]
    stems = {Path(page["path"]).stem for page in pages if page["path"].endswith(".ipynb")}

    def to_page(match: re.Match[str]) -> str:
        if match["stem"] not in stems:
            return match[0]
        return f"]({match['stem']}.html{match['anchor'] or ''})"

    for page in pages:
        if page["path"].endswith(".ipynb"):
            text = notebook_markdown(json.loads(page["content"]), page["path"], images)
        else:
            text = with_cell_links(with_math(page["content"]))
            if "<!-- claims -->" in text:
                table = claims_table(root / "results" / "claims.json")
                text = text.replace("<!-- claims -->", table)
        page["content"] = NOTEBOOK_LINK.sub(to_page, text)
    images.drop_unused()


def main() -> None:
    if sys.argv[1:2] == ["supports"]:
        return
    sys.stdin.reconfigure(encoding="utf-8")
    context, book = json.load(sys.stdin)
    root = Path(context["root"])
    site_assets.bundle(root)
    convert(book, root, root / context["config"]["book"]["src"])
    json.dump(book, sys.stdout)


if __name__ == "__main__":
    main()
