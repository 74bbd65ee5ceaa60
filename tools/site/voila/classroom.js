// Typeset the formulas; lead from widget to widget by keyboard, each in the middle of the screen.
for (const span of document.querySelectorAll("span.math")) {
  const displayMode = span.classList.contains("display");
  katex.render(span.textContent, span, { displayMode, throwOnError: false });
}

const WIDGET = ".widget-vbox:has(> .widget-html)";
let at = -1;

document.addEventListener("keydown", (event) => {
  if (event.key !== "w" || event.ctrlKey || event.metaKey || event.altKey) return;
  const widgets = [...document.querySelectorAll(WIDGET)];
  if (widgets.length) widgets[++at % widgets.length].querySelector(".noUi-handle, select").focus();
});

document.addEventListener("focusin", ({ target }) => {
  // Tab leads from slider to slider, past the numbers beside them
  for (const number of document.querySelectorAll(".widget-readout")) number.tabIndex = -1;
  target.closest(WIDGET)?.scrollIntoView({ block: "center" });
});
