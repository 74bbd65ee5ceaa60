// Typeset the formulas, cut what is longer than a screen into several slides, start reveal.js.
const WIDTH = 1280, HEIGHT = 720;
const SMALL = 360, LARGE = 520; // the height that a figure may be given, as there is space
const NEVER = 1e9; // the cost of a cut that is worse than any empty space

const isHeading = (block) => /^H[1-6]$/.test(block.tagName);
const isFormula = (block) => block.matches("p:has(> .math.display:only-child)");
const goesOn = (block) => block.tagName === "P" && /^[a-z]/.test(block.textContent);

// How much it would hurt to start a slide with this block.
function cutCost(before, block) {
  if (isHeading(before)) return NEVER;
  if (isFormula(block)) return /[:,]$/.test(before.textContent.trim()) ? 3e5 : 1e5;
  if (isFormula(before) && goesOn(block)) return 1e5;
  return 0;
}

// Choose where slides start: every heading starts one, and the empty space is shared out.
function cuts(blocks, space) {
  const tops = blocks.map((b) => b.offsetTop - parseFloat(getComputedStyle(b).marginTop));
  const ends = blocks.map((b) => b.offsetTop + b.offsetHeight);
  const starts = (k) => k > 0 && isHeading(blocks[k]) && !isHeading(blocks[k - 1]);
  const best = [{ cost: 0, path: [] }];
  for (let end = 1; end <= blocks.length; end++) {
    best[end] = { cost: Infinity };
    for (let start = end - 1; start >= 0; start--) {
      const empty = space - (ends[end - 1] - tops[start]);
      if (empty < 0 && start < end - 1) break;
      const cost = best[start].cost + Math.max(empty, 0) ** 2 / 2
        + (start > 0 && !starts(start) ? 2e4 + cutCost(blocks[start - 1], blocks[start]) : 0);
      if (cost < best[end].cost) best[end] = { cost, path: [...best[start].path, start] };
      if (starts(start)) break;
    }
  }
  return best[blocks.length].path;
}

function cut(slide) {
  const blocks = [...slide.children];
  const style = getComputedStyle(slide);
  const space = HEIGHT - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  for (const start of cuts(blocks, space).slice(1).reverse()) {
    const page = slide.cloneNode(false);
    page.append(...[...slide.children].slice(start));
    slide.after(page);
  }
}

// What is alone on its slide and yet too large is set smaller.
function shrink(element, tooLarge) {
  const size = parseFloat(getComputedStyle(element).fontSize);
  for (let part = 0.97; part >= 0.45 && tooLarge(); part -= 0.03) {
    element.style.fontSize = `${part * size}px`;
  }
}

// Fit a slide to the screen: a figure takes what space there is, too much text is set smaller.
function fit(slide) {
  const spare = () => HEIGHT - slide.scrollHeight;
  const pictures = slide.querySelectorAll("figure img");
  const height = SMALL + Math.max(0, spare()) / pictures.length;
  for (const picture of pictures) picture.style.maxHeight = `${Math.min(LARGE, height)}px`;
  shrink(slide, () => spare() < 0);
}

// Say on top of slides without a heading what they belong to.
function name(slides) {
  let above = "";
  for (const slide of slides) {
    const own = [...slide.children].filter(isHeading);
    if (own.length) above = own.at(-1).textContent;
    else if (above) slide.dataset.above = above;
  }
}

async function start() {
  for (const span of document.querySelectorAll("span.math")) {
    const displayMode = span.classList.contains("display");
    katex.render(span.textContent, span, { displayMode, throwOnError: false });
  }
  await Promise.all([...document.fonts].map((face) => face.load()));
  for (const formula of document.querySelectorAll(".math.display")) {
    shrink(formula, () => formula.scrollWidth > formula.clientWidth);
  }
  const slides = () => document.querySelectorAll(".slides > section > section");
  slides().forEach((slide) => slide.classList.add("screen"));
  slides().forEach(cut);
  slides().forEach(fit);
  name(slides());
  document.querySelector(".slides").classList.remove("uncut");
  await Reveal.initialize({
    width: WIDTH, height: HEIGHT, margin: 0, maxScale: 4, center: false,
    controls: false, slideNumber: "c/t", hash: true, transition: "none",
  });
}

start();
