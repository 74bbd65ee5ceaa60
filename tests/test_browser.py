"""Open book, slides and classroom in a real browser, and the first notebook in a real JupyterLab.

The site takes about 15 s, slides and classroom as long, JupyterLab as long as the notebook runs
and some 20 s more.
"""

import functools
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import slides
from sample_notebook import NAME, write_sample
from test_book import build

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "01_unified_perspective.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
RUN_MS = 300_000


@pytest.fixture(scope="module")
def browser():
    reason = "Playwright is not installed: pip install '.[site]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed here to open the pages in")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield opened
        opened.close()


# The book


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = build(ROOT, tmp_path_factory.mktemp("site"))
    serve = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def page(browser):
    """Open a page that remembers every complaint: console errors, exceptions, failed requests."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.complaints = []
    note = opened.complaints.append
    opened.on("console", lambda said: said.type == "error" and note(said.text))
    opened.on("pageerror", lambda error: note(str(error)))
    # Leaving a page aborts what it was still fetching.
    opened.on("requestfailed", lambda r: r.failure != "net::ERR_ABORTED" and note(r.url))
    opened.on("response", lambda got: got.status >= 400 and note(f"{got.status} {got.url}"))
    yield opened
    opened.close()


COUNTS = """() => ({
    asked: document.querySelectorAll("span.math").length,
    rendered: document.querySelectorAll("span.math .katex-html").length,
    failed: document.querySelectorAll(".katex-error").length,
    unloaded: [...document.images].filter(i => (i.loading = "eager") && !i.naturalWidth).length,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    cut: [...document.querySelectorAll("main .math.display, main pre code")]
        .filter(x => x.offsetParent && x.scrollWidth > x.clientWidth + 1)
        .map(x => x.textContent.slice(0, 80)),
})"""


def notebook_url(site):
    return f"{site[0]}/{NOTEBOOK.stem}.html"


def test_every_page_renders_on_a_desk_and_on_a_telephone(page, site):
    url, folder = site
    total = 0
    for path in sorted(folder.glob("*.html")):
        if path.stem in ("404", "toc", "print"):
            continue
        page.goto(f"{url}/{path.name}")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            counts = page.evaluate(COUNTS)
            assert counts["rendered"] == counts["asked"], path.name
            problems = (counts["failed"], counts["unloaded"], max(0, counts["overflow"]))
            assert problems == (0, 0, 0), (path.name, width, counts)
            if width == 1280:  # on a telephone wide formulas and code scroll
                assert counts["cut"] == [], path.name
        total += counts["asked"]
    assert total > 0
    assert page.complaints == []


def test_the_print_page_renders_every_formula(page, site):
    page.add_init_script("window.print = () => {}")
    page.goto(f"{site[0]}/print.html")
    counts = page.evaluate(COUNTS)
    assert counts["asked"] == counts["rendered"] > 0
    assert counts["failed"] == 0


def test_search_finds_a_word_and_leads_to_it(page, site):
    page.goto(notebook_url(site))
    page.locator("#mdbook-search-toggle").click()
    page.locator("#mdbook-searchbar").fill("evidenc")
    page.locator("#mdbook-searchbar").press("e")
    page.locator(f'#mdbook-searchresults a[href*="{NOTEBOOK.stem}"]').first.click()
    page.locator("main mark", has_text=re.compile("evidence", re.IGNORECASE)).first.wait_for()
    assert page.complaints == []


CONTRAST = """selector => {
    const light = colour => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255);
        const linear = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const text = light(getComputedStyle(document.querySelector(selector)).color);
    const paper = light(getComputedStyle(document.documentElement).backgroundColor);
    return (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
}"""


@pytest.mark.parametrize("theme", ["light", "navy"])
def test_both_themes_are_readable(page, site, theme):
    page.goto(notebook_url(site))
    page.locator("#mdbook-theme-toggle").click()
    page.locator(f"#mdbook-theme-{theme}").click()
    page.wait_for_function("name => document.documentElement.classList.contains(name)", arg=theme)
    # WCAG AAA for the text, AA for what is deliberately quiet
    assert page.evaluate(CONTRAST, "main p") > 7
    for selector in ("pre.output", "main a", ".hljs-comment", ".pass"):
        assert page.evaluate(CONTRAST, selector) > 4.5, selector


def test_a_solution_opens_on_a_click(page, site):
    page.goto(notebook_url(site))
    solution = page.locator("details.solution").first
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator("pre").first.is_visible()


# The slides


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    for package in ("katex", "reveal.js"):
        if not (ROOT / "node_modules" / package).exists():
            pytest.skip(f"{package} is not installed: run `make node_modules`")
    folder = tmp_path_factory.mktemp("slides")
    slides.main(folder)
    return folder


# What reaches over the edge of the slide that is shown, and the type that is too small to read.
FAULTS = """() => {
    const slide = Reveal.getCurrentSlide(), faults = [];
    const seen = "h1, h2, h3, p, li, td, pre, img, figcaption, .katex-html";
    for (const part of slide.querySelectorAll(seen)) {
        const box = part.getBoundingClientRect();
        const beyond = Math.max(-box.left, -box.top, box.right - 1280, box.bottom - 720);
        const cut = part.tagName === "PRE" && part.scrollWidth > part.clientWidth;
        const small = !part.matches(".katex-html, pre") && part.textContent
            && parseFloat(getComputedStyle(part).fontSize) < 20;
        if (beyond > 0 || cut || small) faults.push(`${part.tagName} ${part.textContent}`);
    }
    if (/\\$\\S[^$]*\\$/.test(slide.textContent)) faults.push("raw " + slide.textContent);
    if (!slide.textContent.trim() && !slide.querySelector("img")) faults.push("an empty slide");
    return faults;
}"""
ASKED = "span.math:not(:has(.katex-html)), .katex-error"
END = "() => Reveal.isLastSlide() && !Reveal.availableFragments().next"


@pytest.mark.parametrize("path", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_deck_is_paged_through_with_nothing_cut_and_no_network(page, decks, path):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto((decks / f"{path.stem}.html").as_uri())
    page.wait_for_function("() => window.Reveal?.isReady()")
    faults, seen = {}, set()
    while True:
        seen.add(page.evaluate("() => Reveal.getSlidePastCount()"))
        if found := page.evaluate(FAULTS):
            faults[max(seen)] = found
        if page.evaluate(END):
            break
        page.keyboard.press("Space")
    assert faults == {}
    assert len(seen) == page.evaluate("() => Reveal.getTotalSlides()") > 40
    assert page.locator("span.math").count() > 60 and page.locator(ASKED).count() == 0
    assert page.title() == json.loads(path.read_text())["cells"][0]["source"][0].strip("# \n")
    assert page.complaints == []
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    for planted in ("<p style='height: 800px'>x</p>", "<p>costs $x^2$</p>"):  # the checks bite
        page.evaluate("html => Reveal.getCurrentSlide().innerHTML = html", planted)
        assert page.evaluate(FAULTS), planted


def test_every_deck_is_listed_with_the_figures_of_its_widgets(decks):
    listed = (decks / "index.html").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f'href="{path.stem}.html"' in listed
        deck = (decks / f"{path.stem}.html").read_text(encoding="utf-8")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tags = [cell["metadata"].get("tags", []) for cell in cells]
        for at, widget in enumerate(tags):
            if "widget" in widget:
                drawn = max(k for k in range(at) if "figure" in tags[k])
                shown = deck.index(f'id="{cells[drawn]["id"]}"')
                assert deck.index("<img", shown) < deck.index("</figure>", shown)


# JupyterLab


SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell in the document
}


def private_folders(folder):
    """Keep the reader's own Jupyter out of the test, and the test out of it."""
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    return {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "OMP_NUM_THREADS": "1",
    }


def cleared(path, target):
    """Copy the notebook without its outputs, so that whatever is seen was run here."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(notebook), encoding="utf-8")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install '.[lab]'")
    cleared(NOTEBOOK, tmp_path / "course" / "notebooks" / NOTEBOOK.name)
    (tmp_path / "course" / "results").symlink_to(ROOT / "results")
    port, token = free_port(), secrets.token_hex()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={tmp_path / 'course'}", "--ServerApp.ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.news_url=None"]
    with open(tmp_path / "server.log", "w") as log:
        environment = os.environ | private_folders(tmp_path)
        environment.pop(
            "MPLBACKEND", None
        )  # a reader's kernel draws inline, and closes what it drew
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}", f"token={token}"
    server.terminate()
    server.wait(timeout=30)


def answer(url):
    """Return the server's JSON, None while it does not answer."""
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=10) as got:
            return json.load(got)
    except OSError:
        return None


def eventually(ask, complaint, seconds=60):
    """Ask again and again until the answer is good."""
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, complaint
        threading.Event().wait(0.2)


# JupyterLab shows a traceback as it shows anything on stderr.
COMPLAINT = '.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]'
# The run has ended when the last cell has its number (folded cells show none), or when one more
# complains than should.
ENDED = """([cells, failing, complaint]) => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    const ended = prompts.some(prompt => prompt.textContent.includes(`[${cells}]`));
    return ended || document.querySelectorAll(complaint).length > failing;
}"""
PICTURE = ".jp-Notebook .widget-vbox img"
CHANGED = f"before => document.querySelector('{PICTURE}').src !== before"


def picture_changes(page, act, seconds=10):
    """Do something to a slider and wait for its figure to be another one."""
    before = page.locator(PICTURE).first.get_attribute("src")
    act()
    page.wait_for_function(CHANGED, arg=before, timeout=1000 * seconds)


def test_the_notebook_runs_in_jupyterlab_and_its_slider_moves_the_figure(page, lab):
    url, token = lab
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [
        c for c in stored["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()
    ]
    failing = sum("raises-exception" in cell["metadata"].get("tags", []) for cell in code)

    # It listens some time after it has printed its address.
    eventually(lambda: answer(f"{url}/api"), "JupyterLab did not start")
    page.goto(f"{url}/lab/tree/notebooks/{NOTEBOOK.name}?{token}&reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=60_000)
    # The indicator says idle before there is a kernel, and Run All would then ask for one.
    eventually(
        lambda: (
            [k["execution_state"] for k in answer(f"{url}/api/kernels?{token}") or ()] == ["idle"]
        ),
        "no kernel started",
    )
    page.locator("#jp-MainMenu").get_by_text("Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(ENDED, arg=[len(code), failing, COMPLAINT], timeout=RUN_MS)
    shown = page.locator(COMPLAINT)
    eventually(lambda: shown.count() >= failing, "a cell that should fail did not", seconds=10)
    complaints = shown.all_inner_texts()
    assert len(complaints) == failing, complaints

    handle = page.locator(".jp-Notebook .widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    with pytest.raises(Exception, match="Timeout"):  # by itself it keeps still
        picture_changes(page, lambda: None, seconds=0.5)
    picture_changes(page, lambda: page.keyboard.press("ArrowRight"))
    box = handle.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def drag():
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1], steps=6)
        page.mouse.up()

    picture_changes(page, drag)


# The classroom


@pytest.fixture
def classroom(tmp_path):
    pytest.importorskip("voila", reason="Voila is not installed: pip install '.[classroom]'")
    if not (ROOT / "node_modules" / "katex").exists():
        pytest.skip("KaTeX is not installed: run `make node_modules`")
    write_sample(tmp_path / "notebooks")
    port = free_port()
    command = [sys.executable, str(ROOT / "tools" / "classroom.py"), "--no-browser"]
    command += ["--folder", str(tmp_path / "notebooks"), "--port", str(port)]
    with open(tmp_path / "server.log", "w") as log:
        environment = os.environ | private_folders(tmp_path)
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=30)


SLIDER, DRAWN = ".widget-slider .noUi-handle", ".widget-html img"


def test_a_slider_in_the_classroom_moves_a_large_figure_by_keyboard(page, classroom):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 720})

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(classroom.rpartition(":")[2]))) == 0

    eventually(listens, "Voila did not start")
    page.goto(classroom)
    page.get_by_role("link").first.click()
    page.wait_for_url(f"**/{NAME}.ipynb")
    page.locator(SLIDER).wait_for(timeout=120_000)
    page.locator(DRAWN).wait_for()
    before = page.locator(DRAWN).get_attribute("src")
    page.keyboard.press("w")
    page.keyboard.press("ArrowRight")
    moved = f"before => document.querySelector('{DRAWN}').src !== before"
    page.wait_for_function(moved, arg=before, timeout=10_000)
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    picture, slider = (page.locator(part).bounding_box() for part in (DRAWN, SLIDER))
    assert picture["width"] > 900 and 0 < slider["y"] < picture["y"]
    assert picture["y"] + picture["height"] <= 720
    assert page.locator(".jp-InputArea-editor, .cm-editor").count() == 0, "code is shown"
    page.keyboard.press("Tab")  # from the only slider past the number beside it
    assert page.evaluate("() => !document.activeElement.matches('.widget-readout')")
    assert not [url for url in asked if not url.startswith((classroom, "data:", "blob:"))]
