"""The house rules that every notebook keeps; `breaches` lists where one does not."""

import ast
import base64
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import claims
import lecture
from compare_outputs import touches_the_edge
from nbformat import NotebookNode
from sight import out_of_sight

HEADINGS = (
    ("Setup",),
    ("Idea",),
    ("Derivation",),
    ("From scratch",),
    ("On 2-D data", "In shape world"),
    ("Explore",),
    ("At scale",),
    ("Exercises",),
    ("What can go wrong",),
    ("Summary",),
    ("References",),
)
TAGS = {
    *("setup", "scratch", "check", "figure", "widget", "exercise", "solution", "recorded"),
    *("hide-input", "slide", "nbval-ignore-output", "raises-exception"),
}
KEYS = ("tags", "slideshow")
COLLAPSED = {"source_hidden": True}
COURSE = {"number": int, "title": str, "papers": list, "modules": list, "minutes": int}
CELLS, CELLS_OF_01 = (50, 90), (50, 180)
LINES, COLUMNS = 26, 88  # what a page of the book shows without scrolling
KIB, KIB_OF_01 = 500, 1000

READABLE_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]+)*")
HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
ABSOLUTE = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|tmp|work|usr|opt|var|mnt|private|Users)/\w|\b[A-Z]:\\\w"
)
LOCAL_HOST = re.compile(
    r"https?://(localhost|127\.|0\.0\.0\.0|10\.|192\.168\.|[^\s/]+\.(local|internal)\b|[^\s/.]+[:/])"
)
MARKER = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\b", re.MULTILINE)

Breach = tuple[str, str]


@dataclass(frozen=True)
class Book:
    """A notebook as the rules look at it."""

    path: Path
    notebook: NotebookNode
    rows: list[claims.Row]

    @property
    def cells(self) -> list[NotebookNode]:
        return self.notebook.cells

    @property
    def number(self) -> str:
        return self.path.name[:2]

    @cached_property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    def tagged(self, tag: str) -> list[NotebookNode]:
        return [cell for cell in self.cells if tag in tags(cell)]


def breaches(path: Path, notebook: NotebookNode, rows: list[claims.Row]) -> list[str]:
    book = Book(path, notebook, rows)
    found = [breach for rule in RULES for breach in rule(book)]
    return [f"{path.name} [{cell}] {message}" for cell, message in found]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def headings(book: Book) -> Iterator[Breach]:
    """One title, then the same second-level headings in the same order in every notebook."""
    written: list[tuple[int, str, str]] = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            found = HEADING.findall(FENCE.sub("", cell.source))
            written += [(len(marks), text, cell.id) for marks, text in found]
    titles = [cell for level, _, cell in written if level == 1]
    if not book.cells or titles != [book.cells[0].id]:
        yield "notebook", "has one level-1 heading, in its first cell"
    second = [text for level, text, _ in written if level == 2]
    for place, allowed in enumerate(HEADINGS):
        if place >= len(second) or second[place] not in allowed:
            there = second[place] if place < len(second) else "nothing"
            yield "notebook", f"heading {place + 1} is '{there}', expected '## {allowed[0]}'"
            return
    if len(second) > len(HEADINGS):
        yield "notebook", f"heading '## {second[len(HEADINGS)]}' is not part of the skeleton"


def size(book: Book) -> Iterator[Breach]:
    (low, high), most = (CELLS_OF_01, KIB_OF_01) if book.number == "01" else (CELLS, KIB)
    if not low <= len(book.cells) <= high:
        yield "notebook", f"has {len(book.cells)} cells, expected {low} to {high}"
    kib = book.path.stat().st_size / 1024
    if kib >= most:
        yield "notebook", f"is {kib:.0f} KiB large, at most {most}"
    for cell in book.code:
        lines = [
            n for n in cell.source.splitlines() if not n.startswith(("# alt: ", "# caption: "))
        ]
        if not 0 < len(lines) <= LINES:
            yield cell.id, f"has {len(lines)} lines of code, expected 1 to {LINES}"
        if widest := max((len(line) for line in lines if len(line) > COLUMNS), default=0):
            yield cell.id, f"has a line of {widest} columns, at most {COLUMNS}"


def metadata(book: Book) -> Iterator[Breach]:
    form = (book.notebook.nbformat, book.notebook.nbformat_minor)
    if form != (4, 5):
        yield "notebook", f"is of nbformat {form[0]}.{form[1]}, expected 4.5"
    if "widgets" in book.notebook.metadata:
        yield "notebook", "stores widget state"
    course = book.notebook.metadata.get("course", {})
    for key, kind in COURSE.items():
        if not isinstance(course.get(key), kind) or not course[key]:
            yield "notebook", f"course metadata needs `{key}`, a filled {kind.__name__}"
    if set(course) - set(COURSE):
        yield "notebook", f"course metadata has unknown {sorted(set(course) - set(COURSE))}"
    if course.get("number") != int(book.number):
        yield "notebook", f"course number {course.get('number')} is not that of the file name"
    for module in course.get("modules", []):
        if importlib.util.find_spec(f"tutorial_lib.{module}") is None:
            yield "notebook", f"course metadata names tutorial_lib.{module}, which does not exist"


def cell_metadata(book: Book) -> Iterator[Breach]:
    for cell in book.cells:
        keys = (*KEYS, "jupyter") if "solution" in tags(cell) else KEYS
        if set(cell.metadata) - set(keys):
            yield cell.id, f"metadata holds {sorted(set(cell.metadata) - set(keys))}"
        if set(tags(cell)) - TAGS:
            yield cell.id, f"unknown tag {sorted(set(tags(cell)) - TAGS)}"
        if "nbval-ignore-output" in tags(cell) and "widget" not in tags(cell):
            yield cell.id, "only a widget cell may have nbval-ignore-output"
        if MARKER.search(cell.source):
            yield cell.id, "nbval is told what to do by tags, not by comments"


def ids(book: Book) -> Iterator[Breach]:
    listed = [cell.get("id", "") for cell in book.cells]
    for name in listed:
        if not READABLE_ID.fullmatch(name) or RANDOM_ID.fullmatch(name):
            yield name, "cell ids are words joined by hyphens"
    for name in sorted(claims.repeated(listed)):
        yield name, "cell id is used twice"


def execution(book: Book) -> Iterator[Breach]:
    counts = [cell.execution_count for cell in book.code]
    if counts != list(range(1, len(counts) + 1)):
        yield "notebook", "execution counts are not 1..n: run it with tools/notebooks.py"
    for cell in book.code:
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                yield cell.id, f"ends in {output.ename}"
            if output.get("name") == "stderr":
                yield cell.id, "writes to stderr: mend what it warns of"
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                yield cell.id, "stores a widget's view"


def figures(book: Book) -> Iterator[Breach]:
    for cell in book.code:
        pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        if "figure" not in tags(cell):
            if pictures:
                yield cell.id, "draws, but is not tagged figure"
            continue
        if not re.match(r"# alt: \S.{20}.*\n# caption: \S.{20}", cell.source):
            yield cell.id, "a figure cell starts with `# alt:` and `# caption:`, a sentence each"
        if pictures != 1:
            yield cell.id, f"a figure cell has one PNG, not {pictures}"
        elif any(touches_the_edge(png) for png in _pictures(cell)):
            yield cell.id, "draws up to the edge of its picture: something is cut off"
        if cell.source.rstrip().splitlines()[-1:] != ["plt.show()"]:
            yield cell.id, "a figure cell ends in plt.show()"


def _pictures(cell: NotebookNode) -> Iterator[bytes]:
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            yield base64.b64decode(output.data["image/png"])


def widgets(book: Book) -> Iterator[Breach]:
    if not book.tagged("widget"):
        yield "notebook", "has no widget"
    for cell in book.code:
        if ("explore" in _called(cell)) != ("widget" in tags(cell)):
            yield cell.id, "a cell that calls explore() is tagged widget, and no other is"


def verdicts(book: Book) -> Iterator[Breach]:
    """Every scratch cell is checked before the next one, and checks say so."""
    waiting = None
    for cell in book.code:
        if "scratch" in tags(cell):
            if waiting:
                yield waiting, "no check cell follows before the next scratch cell"
            waiting = cell.id
        if "check" in tags(cell):  # a scratch cell may check itself
            waiting = None
            if "PASS" not in claims.stdout(cell):
                yield cell.id, "a check cell prints a verdict"
    if waiting:
        yield waiting, "no check cell follows"


def in_sight(book: Book) -> Iterator[Breach]:
    for cell, name in out_of_sight(book.code):
        yield cell, f"uses {name}, which only folded code has made: make it in shown code"


def places(book: Book) -> Iterator[Breach]:
    for cell in book.cells:
        shown = [cell.source, *_texts(cell)]
        if any(ABSOLUTE.search(text) for text in shown):
            yield cell.id, "holds an absolute path"
        if any(LOCAL_HOST.search(text) for text in shown):
            yield cell.id, "holds the address of a local host"


def exercises(book: Book) -> Iterator[Breach]:
    stubs, solutions = book.tagged("exercise"), book.tagged("solution")
    if not 4 <= len(stubs) <= 6:
        yield "notebook", f"has {len(stubs)} exercises, expected 4 to 6"
    wanted = [f"{book.number}.{k + 1}" for k in range(len(stubs))]
    for kind, cells in (("exercise", stubs), ("solution", solutions)):
        numbers = [checked(cell)[0] for cell in cells]
        if numbers != wanted:
            yield "notebook", f"{kind} cells check {numbers}, expected {wanted}"
            return
    for number, stub, solution in zip(wanted, stubs, solutions, strict=True):
        yield from _stub(stub, number)
        yield from _solution(solution, stub, number)


def _stub(cell: NotebookNode, number: str) -> Iterator[Breach]:
    defined = _functions(cell)
    if len(defined) != 1 or not _is_empty(defined[0]) or checked(cell)[1] != defined[0].name:
        yield cell.id, "an exercise cell defines and checks one function, whose body is `...`"
    if claims.stdout(cell).strip() != f"{number} to do":
        yield cell.id, f"an exercise cell prints `{number} to do`"


def _solution(cell: NotebookNode, stub: NotebookNode, number: str) -> Iterator[Breach]:
    names = {f.name for f in _functions(cell)}
    if "hide-input" not in tags(cell) or cell.metadata.get("jupyter") != COLLAPSED:
        yield cell.id, "a solution cell is tagged hide-input and collapsed"
    if checked(cell)[1] not in names or names & {f.name for f in _functions(stub)}:
        yield cell.id, "a solution has a name of its own, or Run All overwrites the learner"
    if not claims.stdout(cell).startswith(f"✓ {number}"):
        yield cell.id, f"a solution cell prints `✓ {number}`"
    answers = [line.strip() for f in _functions(cell) for line in _body(f, cell.source)]
    if any(answer in stub.source for answer in answers):
        yield stub.id, "the solution leaks into the exercise"


def claimed(book: Book) -> Iterator[Breach]:
    numbers = []
    for cell in book.code:
        calls = [c for c in ast.walk(_tree(cell)) if isinstance(c, ast.Call)]
        for call in (c for c in calls if _name(c) == "claim"):
            first = call.args[0] if call.args else None
            if not isinstance(first, ast.Constant) or str(first.value)[:2] != book.number:
                yield cell.id, f'a claim is numbered in place, like "{book.number}.3"'
            else:
                numbers.append(first.value)
                if "check" not in tags(cell):
                    yield cell.id, "a claim stands in a check cell"
    if sorted(numbers) != sorted(claim.number for claim in claims.printed(book.notebook)):
        yield "notebook", "the claims in the code are not those in the stored outputs"
    own = [row for row in book.rows if row["notebook"] == book.path.stem]
    for breach in claims.breaches(own, {book.path.stem: book.notebook}):
        yield "notebook", f"claim {breach}"


RULES: tuple[Callable[[Book], Iterator[Breach]], ...] = (
    *(headings, size, metadata, cell_metadata, ids, execution, figures, widgets),
    *(lecture.breaches, verdicts, in_sight, places, exercises, claimed),
)


def checked(cell: NotebookNode) -> tuple[str, str]:
    """Return the number and the function's name of the `exercise(...)` call in a cell."""
    for call in ast.walk(_tree(cell)):
        if isinstance(call, ast.Call) and _name(call) == "exercise" and len(call.args) == 2:
            number, answer = call.args
            if isinstance(number, ast.Constant) and isinstance(answer, ast.Name):
                return str(number.value), answer.id
    return "", ""


def _called(cell: NotebookNode) -> set[str]:
    return {_name(call) for call in ast.walk(_tree(cell)) if isinstance(call, ast.Call)}


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _tree(cell: NotebookNode) -> ast.Module:
    lines = [line for line in cell.source.splitlines() if not line.startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:  # the kernel has said so already, in a stored error
        return ast.Module([], [])


def _functions(cell: NotebookNode) -> list[ast.FunctionDef]:
    return [node for node in _tree(cell).body if isinstance(node, ast.FunctionDef)]


def _is_empty(function: ast.FunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return [ast.unparse(statement) for statement in body] == ["..."]


def _body(function: ast.FunctionDef, source: str) -> list[str]:
    """Return the lines of a function's body that are long enough to give something away."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno] if body else []
    return [line for line in lines if len(line.strip()) >= 12]


def _texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield output.get("text", "") + output.get("evalue", "")
        yield from (v for k, v in output.get("data", {}).items() if k.startswith("text/"))
