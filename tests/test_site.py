"""The site as a reader meets it: every page in one browser, on a desk and on a phone, light and
dark, without a network."""
import functools, http.server, re, subprocess, sys, threading
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "_docs"

def moved(root):
    "Old address -> where it leads, of pages that have moved."
    led = {p: re.search(r'http-equiv="refresh" content="0; ?url=([^"]+)"',
                        p.read_text(encoding="utf-8")) for p in sorted(root.rglob("*.html"))}
    return {p: (p.parent / m[1]).resolve() for p, m in led.items() if m}

def pages(root):
    "Those of the site; the atlas beside them has tests of its own, and old addresses are no pages."
    old = moved(root)
    return [p for p in sorted(root.rglob("*.html")) if p.name != "twin_atlas.html" and p not in old]

def fresh():
    "Is the built site newer than all that it is made of?"
    made = DOCS / "index.html"
    parts = [p for d in ("nbs", "ccd", "results", "tools")
             for p in (ROOT / d).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return (made.exists()
            and made.stat().st_mtime
            > max(p.stat().st_mtime for p in [*parts, ROOT / "_quarto.yml"]))

@pytest.fixture(scope="module")
def root():
    "The folder of the site; `make test` has built it just before."
    if not fresh():
        p = subprocess.run([sys.executable, "tools/site.py"], cwd=ROOT, capture_output=True,
                           text=True)
        assert p.returncode == 0, p.stdout + p.stderr
    return DOCS

def the_axe():
    "The script of axe-core, or None where its package is not installed."
    try: from axe_playwright_python.base import AXE_FILE_PATH
    except ImportError: return None
    return AXE_FILE_PATH.read_text(encoding="utf-8")

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass

@pytest.fixture(scope="module")
def address(root):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                         functools.partial(Quiet, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

OVERFLOW = """() => { const w = document.documentElement.clientWidth
    if (document.documentElement.scrollWidth <= w) return []
    const inside = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
        if (/auto|scroll|hidden|clip/.test(getComputedStyle(p).overflowX)) return true; return false }
    return [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > w + 1 && !inside(e))
        .slice(0, 3).map(e => e.outerHTML.slice(0, 120)) }"""  # noqa: E501
FACTS = """() => ({ ids: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
    links: [...document.querySelectorAll("a[href]")].map(a => a.getAttribute("href") && a.href),
    pictures: [...document.querySelectorAll("img")].map(i => [i.getAttribute("alt"), i.naturalWidth, i.outerHTML.slice(0, 120)]) })"""  # noqa: E501

NEW_COLOURS = """known => { // marks the first text of each combination of colours, sizes and weights that is not known yet
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), fresh = []
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement, own = getComputedStyle(e)
        if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue
        const behind = []
        for (let p = e; p; p = p.parentElement) { const c = getComputedStyle(p); behind.push(c.backgroundColor, c.opacity) }
        const key = [own.color, own.fontSize, own.fontWeight, ...new Set(behind)].join()
        if (!known.includes(key)) { known.push(key); fresh.push(key); e.dataset.fresh = "" }
    }
    return fresh }"""  # noqa: E501

def ask(page, where, **options):
    "What axe says, a line for each element."
    r = page.evaluate("([where, o]) => axe.run(where, o)",
                      [where, options | dict(resultTypes=["violations"])])
    return [f"{v['id']}: {' '.join(map(str, n['target']))} {n['html'][:90]} "
            f"{n['any'][0]['message'] if n['any'] else ''}"
            for v in r["violations"] for n in v["nodes"]]

def judged(page, axe, known):
    """Contrast, light and dark, once for each combination of colours on the site; all else once a
    page, in light."""
    page.evaluate(axe)
    said = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("s => document.documentElement.classList.contains('quarto-dark') "
                               "=== (s === 'dark')", arg=scheme)
        fresh = page.evaluate(NEW_COLOURS, known[scheme])
        known[scheme] += fresh
        if fresh:
            said += [f"{scheme}: {x}"
                     for x in ask(page, "[data-fresh]", runOnly=["color-contrast"])]
        page.evaluate("document.querySelectorAll('[data-fresh]').forEach(e => delete "
                      "e.dataset.fresh)")
    # the colours of code have been seen: as plain text it takes a tenth of the time
    page.evaluate("document.querySelectorAll('pre code').forEach(e => e.textContent = "
                  "e.textContent)")
    return said + ask(page, dict(exclude=["iframe"]), rules={"color-contrast": dict(enabled=False)})

@pytest.fixture(scope="module")
def seen(browser, address, root):
    "Page -> what was met on it. Whatever is asked of another host is noted and refused."
    context, notes, known = (browser.new_context(color_scheme="light", reduced_motion="reduce"), {},
                             dict(light=[], dark=[]))
    page, now, axe = context.new_page(), None, the_axe()
    def asked(route):
        if route.request.url.startswith(address): return route.continue_()
        now["foreign"].append(route.request.url); route.abort()
    context.route(lambda url: not url.startswith(("data:", "blob:", address)), asked)
    page.on("console",
            lambda m: m.type in ("error", "warning") and "GL Driver Message" not in m.text
            and now["errors"].append(m.text))
    page.on("pageerror", lambda e: now["errors"].append(str(e)))
    page.on("response", lambda r: r.status >= 400 and now["errors"].append(f"{r.status}: {r.url}"))
    for path in pages(root):
        name = path.relative_to(root).as_posix()
        now = notes[name] = dict(errors=[], foreign=[])
        page.set_viewport_size(dict(width=390, height=844))
        page.goto(address + name)
        now |= page.evaluate(FACTS)
        now["overflow"] = page.evaluate(OVERFLOW)
        page.set_viewport_size(dict(width=1280, height=900))
        if axe: now["axe"] = judged(page, axe, known)
    context.close()
    return notes

def bad(seen, of):
    "Page -> what is wrong with it, for the pages where something is."
    return {k: x for k, v in seen.items() if (x := list(dict.fromkeys(of(v))))}

def nothing(found): # a line for each, so that all can be read
    assert not found, "\n".join(f"{k}: {x}" for k, v in found.items() for x in v)

@pytest.mark.parametrize("old, new",
                         [("core", "settings"), ("sources", "data/corpora"),
                          ("pairs", "comparison/search"), ("vlm", "vqa/llava/training")])
def test_an_old_address_leads_to_the_page_that_has_moved(root, old, new):
    assert moved(root)[root / f"library/{old}.html"] == (root / f"library/{new}.html").resolve()

def test_every_old_address_leads_to_a_page(root):
    assert len(moved(root)) > 20 and all(to in pages(root) for to in moved(root).values())

def test_every_page_loads_without_an_error(seen):
    assert len(seen) > 40
    nothing(bad(seen, lambda v: v["errors"]))

def test_nothing_is_loaded_from_elsewhere(seen): nothing(bad(seen, lambda v: v["foreign"]))

def test_links_and_anchors_lead_somewhere(seen, root, address):
    def broken(v):
        for link in filter(None, v["links"]):
            if not link.startswith(address): continue
            u = urlsplit(link); name = unquote(u.path).lstrip("/")
            if (root / name).is_dir(): name = f"{name}/index.html".lstrip("/")
            if not (root / name).exists(): yield link
            elif name in seen and unquote(u.fragment) not in ["", *seen[name]["ids"]]: yield link
    nothing(bad(seen, broken))
    assert sum(l.startswith(address) for v in seen.values() for l in v["links"]) > 1000

def test_nothing_is_wider_than_a_phone(seen): nothing(bad(seen, lambda v: v["overflow"]))

def test_every_picture_is_there_and_says_what_it_shows(seen):
    shown = [p for v in seen.values() for p in v["pictures"]]
    assert len(shown) > 20 and all(width for _, width, _ in shown)
    nothing(bad(seen, lambda v: [html for alt, _, html in v["pictures"] if len(alt or "") < 12]))

def test_axe_finds_nothing(seen):
    if not the_axe():
        pytest.skip("axe-playwright-python is not installed: pages are not checked with axe")
    nothing(bad(seen, lambda v: v["axe"]))

def test_search_finds_a_function(browser, address):
    page = browser.new_page()
    page.goto(address + "index.html")
    page.fill("#quarto-search input", "cluster_bootstrap")
    first = page.locator("#quarto-search .search-result").first
    first.wait_for()
    assert "library/stats.html" in first.get_attribute("href")
    page.close()

def test_pictures_enlarge_and_tables_sort(browser, address):
    page = browser.new_page(viewport=dict(width=900, height=700))
    page.goto(address + "findings/image_accuracy.html")
    page.locator("main button.enlarge").first.focus(); page.keyboard.press("Enter")
    wide = page.evaluate("[...document.querySelectorAll('dialog.enlarged[open] img, main .enlarge "
                         "img')].map(i => i.clientWidth)")
    assert wide[-1] > wide[0]
    page.keyboard.press("Escape")
    assert page.locator("dialog.enlarged[open]").count() == 0
    table = page.locator("main table:has(button.sort)").first
    def column():
        return table.evaluate("t => [...t.tBodies[0].rows].map(r => r.cells[1].textContent)")
    def value(s):
        return float(s.replace("−", "-").split()[0].strip("*%"))
    before = column()
    for up in (True, False):
        table.locator("th button.sort").first.click()
        assert (sorted(column()) == sorted(before)
                and table.locator("th").first.get_attribute("aria-sort")
                == ("ascending" if up else "descending"))
    page.close()

def test_the_atlas_lives_in_its_page(browser, address, root):
    assert (root / "findings/twin_atlas.html").stat().st_size <= 15_000_000
    page, foreign = browser.new_page(viewport=dict(width=1280, height=900)), []
    page.on("request",
            lambda r: r.url.startswith((address, "data:", "blob:")) or foreign.append(r.url))
    page.goto(address + "findings/atlas.html")
    page.locator("iframe.atlas").scroll_into_view_if_needed()
    inside = page.frame_locator("iframe.atlas")
    inside.locator("body[data-ready=true]").wait_for(timeout=60_000)
    assert inside.locator("body").evaluate("() => atlas.maps.map(m => m.x.length)") == [1500, 1500]
    assert "Apache-2.0" in inside.locator("footer").inner_text()
    assert foreign == []
    page.close()

def test_a_builder_that_warns_has_failed(tmp_path, capfd):
    import importlib.util
    spec = importlib.util.spec_from_file_location("tools_site", ROOT / "tools/site.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    def says(line, rc=0):
        return tool.strictly([sys.executable, "-c",
                              f"import sys; print({line!r}, file=sys.stderr); sys.exit({rc})"],
                             tmp_path)
    assert says("Output created: index.html") == 0 and says("no WARN here") == 0
    assert (says("WARN: Unable to resolve crossref @fig-x")
            and says("\x1b[33mWARNING (main): nothing\x1b[39m") and says("fine", 3) == 3)
    assert "crossref" in capfd.readouterr().out
