"""Find names that shown code uses although only folded code makes them."""

import ast
from collections.abc import Iterator

from nbformat import NotebookNode

FOLDED = {"check", "figure", "recorded", "widget", "solution"}  # as the book folds them


def out_of_sight(cells: list[NotebookNode]) -> Iterator[tuple[str, str]]:
    """Yield cell and name for every use, in shown code, of what only folded code has made."""
    shown, folded = set[str](), set[str]()
    for cell in cells:
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:  # the kernel has said so already
            continue
        if FOLDED & set(cell.metadata.get("tags", [])):
            folded |= made(tree)
            continue
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - made(tree)
        yield from ((cell.id, name) for name in sorted(used & (folded - shown)))
        shown |= made(tree)


def made(tree: ast.AST) -> set[str]:
    """Return every name that code binds, at whatever depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found
