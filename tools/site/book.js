// Render the formulas that tools/mdbook_ipynb.py left as LaTeX in <span class="math">.
for (const span of document.querySelectorAll("span.math")) {
  katex.render(span.textContent, span, {
    displayMode: span.classList.contains("display"),
    throwOnError: false,
  });
}

// The book has two palettes; book.css hides the names of mdBook's others.
const dark = document.getElementById("mdbook-theme-navy");
if (dark) dark.textContent = "Dark";
