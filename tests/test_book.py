"""Build the real book and hold its pages against the notebooks they come from.

The checks read the built HTML, as a browser would; the last part feeds each of them a page with
one planted fault. About 8 s.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import mdbook_ipynb
import pytest

ROOT = Path(__file__).parents[1]
VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "wbr",
}


class Page(HTMLParser):
    """Collect what the checks ask about a built page; `main` is the chapter itself."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.images = [], [], [], []
        self.formulas, self.prose, self.solutions, self.bare_code = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        kinds = (attrs.get("class") or "").split()
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag in ("a", "link") and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("img", "script") and attrs.get("src"):
            self.links.append(attrs["src"])
        if tag == "img":
            self.images.append((attrs["src"], attrs.get("alt") or ""))
        if tag == "details" and "solution" in kinds:
            self.solutions.append("open" not in attrs)
        if tag == "span" and "math" in kinds:
            self.formulas.append({"tex": "", "display": "display" in kinds})
        if tag not in VOID:
            self.open.append((tag, kinds))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "main" not in tags:
            return
        if any("math" in kinds for _, kinds in self.open):
            self.formulas[-1]["tex"] += data
        elif "code" in tags:
            if not any("solution" in kinds for _, kinds in self.open):
                self.bare_code.append(data)
        elif "pre" not in tags:
            self.prose.append(data)

    def leftovers(self):
        """Name what a reader should never see: LaTeX or template marks in the prose."""
        marks = re.compile(r"\$\S[^$]*\$|\\begin|\\[a-z]+\{|\{\{|<!--")
        return [mark for text in self.prose for mark in marks.findall(text)]


def tool(name, advice):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {advice}")
    return found


def build(root, target):
    mdbook = tool("mdbook", "pip install '.[site]'")
    if not (ROOT / "node_modules" / "katex").exists():
        pytest.skip("KaTeX is not installed: run `npm install`")
    done = subprocess.run([mdbook, "build", "-d", target, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARN" not in done.stderr, done.stderr
    return target


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def pages(book):
    made = [path for path in book.glob("*.html") if path.stem not in ("print", "toc", "404")]
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in made}


def chapters():
    summary = (ROOT / "notebooks" / "SUMMARY.md").read_text(encoding="utf-8")
    return re.findall(r"\]\(([\w.]+)\)", summary)


def notebooks():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def refused(formulas):
    script = ROOT / "tools" / "site" / "check_math.cjs"
    node = tool("node", "install Node.js")
    asked = json.dumps(formulas)
    done = subprocess.run([node, script], input=asked, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def broken(name, links, pages, folder):
    """Yield the links of one page that lead nowhere on the site."""
    for link in links:
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        page = pages.get(target or name)
        found = (folder / (target or name)).exists()
        if not found or (anchor and page and anchor not in page.ids):
            yield link


def test_every_notebook_is_a_chapter_and_every_chapter_a_page(book, pages):
    listed = [name for name in chapters() if name.endswith(".ipynb")]
    assert listed == [path.name for path, _ in notebooks()]
    for name in chapters():
        assert f"{Path(name).stem}.html" in pages
    summary = (ROOT / "notebooks" / "SUMMARY.md").read_text(encoding="utf-8")
    for path, notebook in notebooks():
        assert f"[{notebook['metadata']['course']['title']}]({path.name})" in summary
        assert (book / path.name).read_bytes() == path.read_bytes()
        assert path.name in pages[f"{path.stem}.html"].links, "no link to download it"
    assert (book / "print.html").exists()


def test_links_resolve(book, pages):
    for name, page in pages.items():
        assert not list(broken(name, page.links, pages, book)), name


def test_ids_are_unique_and_every_cell_is_an_anchor(pages):
    for name, page in pages.items():
        assert sorted(page.ids) == sorted(set(page.ids)), name
    for path, notebook in notebooks():
        cells = {cell["id"] for cell in notebook["cells"] if "".join(cell["source"]).strip()}
        assert cells <= set(pages[f"{path.stem}.html"].ids)


def test_every_formula_renders(pages):
    formulas = [formula for page in pages.values() for formula in page.formulas]
    assert formulas
    assert refused(formulas) == []
    assert not re.search("[‘’“”…]", "".join(f["tex"] for f in formulas)), "typeset as prose"


def test_nothing_is_left_unexpanded(pages):
    for name, page in pages.items():
        assert not page.leftovers(), name


def test_solutions_are_folded(pages):
    for path, notebook in notebooks():
        solutions = [
            c for c in code_cells(notebook) if "solution" in c["metadata"].get("tags", [])
        ]
        page = pages[f"{path.stem}.html"]
        assert page.solutions == [True] * len(solutions)
        shown = "".join(page.bare_code)
        for cell in solutions:
            assert "".join(cell["source"]).strip() not in shown, cell["id"]


def test_every_figure_is_shown_and_described(book, pages):
    for path, notebook in notebooks():
        stored = [
            output
            for cell in code_cells(notebook)
            if "widget" not in cell["metadata"].get("tags", [])
            for output in cell["outputs"]
            if "image/png" in output.get("data", {})
        ]
        images = pages[f"{path.stem}.html"].images
        assert len(images) == len(stored)
        for source, alt in images:
            content = (book / source).read_bytes()
            assert hashlib.sha256(content).hexdigest().startswith(Path(source).stem)
            assert alt.strip(), source


def test_the_claims_page_lists_every_claim(pages):
    claims = json.loads((ROOT / "results" / "claims.json").read_text(encoding="utf-8"))
    for claim in claims:
        anchor = f"{Path(claim['notebook']).stem}.html#{claim['cell']}"
        assert anchor in pages["claims.html"].links, claim["number"]


def test_the_glossary_is_sorted_and_its_terms_are_in_their_notebooks():
    text = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .+ \| (\d\d) \|$", text, re.MULTILINE)
    terms = [english.lower() for english, _, _ in rows]
    assert len(terms) > 50
    assert terms == sorted(terms)
    for path, notebook in notebooks():
        words = " ".join("".join(cell["source"]) for cell in notebook["cells"]).lower()
        words = re.sub(r"\s+", " ", words)
        missing = [t for t, row in zip(terms, rows, strict=True) if row[2] == path.name[:2]]
        assert [term for term in missing if term not in words] == [], path.name


# The converter, on cells whose page is known exactly


def code(source, *outputs, tags=(), identity="a-cell"):
    cell = {"cell_type": "code", "id": identity, "source": source, "outputs": list(outputs)}
    return {**cell, "metadata": {"tags": list(tags)}}


def converted(cell):
    return "\n".join(mdbook_ipynb.code_cell(cell, images=None))


def test_math_becomes_entities_and_code_is_left_alone():
    text = "a $x_1 < |y|$, \\$5, `$z$` and\n```\n$code$\n```\n$$\n\\frac12 \\tag{1}\n$$ costs 3$."
    assert mdbook_ipynb.with_math(text) == (
        'a <span class="unbroken"><span class="math inline">x&#95;1 &#60; &#124;y&#124;</span>,'
        "</span> \\$5, `$z$` and\n"
        "```\n$code$\n```\n"
        '<span class="math display">&#92;frac12 &#92;tag&#123;1&#125;</span> costs 3$.'
    )


def test_a_cell_id_is_its_headings_id_and_no_comment_in_code_is_a_heading():
    source = "## Idea of $x$\n```\n# no heading\n```\n### Proof, in one line"
    assert list(mdbook_ipynb.markdown_cell({"id": "idea", "source": source})) == [
        '## Idea of <span class="unbroken"><span class="math inline">x</span></span> {#idea}\n'
        "```\n# no heading\n```\n### Proof, in one line {#section-proof-in-one-line}"
    ]
    later = {"id": "aside", "source": "text\n\n## Idea"}
    assert list(mdbook_ipynb.markdown_cell(later)) == [
        '<div id="aside"></div>',
        "text\n\n## Idea {#section-idea}",
    ]


def test_verdicts_are_folded_with_their_code_and_counted():
    printed = {"output_type": "stream", "name": "stdout", "text": "gap <b> & 1e-10  PASS\n"}
    assert converted(code("check()", printed, tags=["check"])) == (
        '<div class="cell check" id="a-cell">\n'
        '<details class="input quiet"><summary>How it is checked <b class="pass">✓ 1 check</b>'
        "</summary>\n```python\ncheck()\n```\n"
        '<pre class="output stdout">gap &lt;b&gt; &amp; 1e-10  <b class="pass">PASS</b></pre>\n'
        "</details>\n</div>"
    )


def test_a_claim_is_a_sentence_and_what_is_no_verdict_stays_in_sight():
    claim = "Claim 01.4  They miss it\n  measured ≈ 1.89   bar 1.7 to 2.1   PASS\n  paper: Luo\n"
    text = "entropy H = 0.94\n" + claim + "a bound < 1  PASS\n"
    page = converted(code("check()", {"output_type": "stream", "name": "stdout", "text": text}))
    assert "<details" not in page  # not a check cell
    printed = {"output_type": "stream", "name": "stdout", "text": text}
    shown, folded = converted(code("check()", printed, tags=["check"])).split("<details")
    assert '<pre class="output stdout">entropy H = 0.94</pre>' in shown
    assert (
        '<p class="claim"><b class="pass">✓ 01.4</b> They miss it: <b>1.89</b> '
        "<i>(bar 1.7 to 2.1)</i></p>" in shown
    )
    assert "✓ 1 check<" in folded and "a bound &lt; 1" in folded and "paper: Luo" in folded


def test_numbers_in_claims_are_typeset():
    assert mdbook_ipynb.typeset("KL(q || p) at t <= 0.01: 6.4e-14, bar < 1e-10") == (
        "KL(q ‖ p) at t ≤ 0.01: 6.4·10<sup>−14</sup>, bar &lt; 10<sup>−10</sup>"
    )


def test_alt_text_leaves_the_code_and_reaches_the_image(tmp_path):
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x40\x00\x00\x00\xc8"
    data = {"image/png": mdbook_ipynb.base64.b64encode(png).decode()}
    figure = {"output_type": "display_data", "data": data, "metadata": {}}
    source = "# alt: A cloud.\n# caption: Points of $x_t$.\nplt.show()"
    cell = code(source, figure, tags=["figure"])
    images = mdbook_ipynb.Images(tmp_path / "images")
    page = "\n".join(mdbook_ipynb.code_cell(cell, images))
    name = hashlib.sha256(png).hexdigest()[:16] + ".png"
    assert "```python\nplt.show()\n```" in page
    assert f'<img src="images/{name}" alt="A cloud." width="320" height="200">' in page
    assert '<figcaption>Points of <span class="unbroken"><span class="math inline">' in page
    assert page.index("<figure>") < page.index("How it is drawn")
    assert (tmp_path / "images" / name).read_bytes() == png


def test_a_widget_names_its_controls():
    shown = {"text/plain": "Run this cell to explore: time t, ε"}
    view = {"output_type": "display_data", "data": shown, "metadata": {}}
    page = converted(code("explore(show)", view, tags=["widget"]))
    assert "this figure has sliders: time t, ε." in page
    assert "<details" in page


def test_a_row_of_the_coverage_table_leads_to_its_cells():
    row = "| 01.2 | The bound | 01_name | elbo, elbo-check |"
    assert mdbook_ipynb.with_cell_links(f"{row}\n| 01 | x | 01_name | y |") == (
        "| 01.2 | The bound | [01](01_name.ipynb) | [elbo](01_name.ipynb#elbo), "
        "[elbo-check](01_name.ipynb#elbo-check) |\n| 01 | x | 01_name | y |"
    )


# The checks, on pages with one fault each


def page_of(body):
    return Page(f"<main>{body}</main>")


@pytest.mark.parametrize(
    "body", ["it costs $x^2$", r"\begin{aligned}", r"\frac{1}{2}", "{{#include x}}"]
)
def test_a_leftover_is_noticed(body):
    assert page_of(body).leftovers()
    inside = f'<code>{body}</code><span class="math inline">{body}</span>'
    assert not page_of(inside).leftovers()


def test_a_bad_formula_is_refused():
    good = {"tex": r"\begin{aligned} a &= b \\ c &= d \end{aligned} \tag{1}", "display": True}
    unclosed = {"tex": r"\frac{1}{2", "display": False}
    unknown = {"tex": r"\expectation x", "display": False}
    assert [entry["tex"] for entry in refused([good, unclosed, unknown])] == [
        unclosed["tex"],
        unknown["tex"],
    ]


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "a.html").touch()
    pages = {"a.html": page_of('<h1 id="top"></h1>')}
    links = ["a.html#top", "a.html#gone", "b.html", "#top", "https://arxiv.org/abs/2208.11970"]
    assert list(broken("a.html", links, pages, tmp_path)) == ["a.html#gone", "b.html"]


def test_an_open_solution_is_noticed():
    assert page_of('<details class="solution" open></details>').solutions == [False]
    leaked = page_of('<details class="solution"></details><pre><code>answer</code></pre>')
    assert leaked.bare_code == ["answer"]
