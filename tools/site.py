"""Build the site into _docs/ and check it: with Quarto where it is on PATH, else a preview with
smalldocs.

smalldocs leaves some of Quarto to us: references to figures, tables, equations and sections; output
file names; maths as MathML; pandas tables. Both builds end in the same check of the pages: links,
images, references."""
import json, posixpath, re, shutil, subprocess, sys
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

def text(cell): return "".join(cell["source"])

# --- the configuration, and what the notebooks must keep to

def merge(a, b):
    for k, v in b.items():
        a[k] = merge(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v
    return a

def config(path):
    "A `_quarto.yml` over its `metadata-files`, as Quarto merges them."
    d, base = yaml.safe_load(path.read_text(encoding="utf-8")) or {}, {}
    for f in d.pop("metadata-files", []):
        if (path.parent/f).exists(): merge(base, config(path.parent/f))
    return merge(base, d)

def listed(contents):
    "Every page that a sidebar's contents name."
    for x in contents:
        if isinstance(x, str): yield x
        else: yield from filter(None, [x.get("href")]); yield from listed(x.get("contents", []))

def sources(nbs):
    return sorted(n
                  for p in nbs.rglob("*.ipynb")
                  if not re.search(r"(^|/)[._]", n := str(p.relative_to(nbs))))

def slow_errors(nbs):
    "nbdev runs every cell that imports when it builds the site, so a slow cell may not."
    for name in sources(nbs):
        for n, c in enumerate(json.loads((nbs/name).read_text(encoding="utf-8"))["cells"]):
            if (re.search(r"^#\| *slow\b", text(c), re.M)
                and re.search(r"^\s*(import|from)\s+\w", text(c), re.M)):
                yield f"{name}: cell {n} is slow and imports; import in a cell of its own"

def sidebar_errors(nbs, conf):
    pages = set(sources(nbs))
    named = set(listed(conf["website"]["sidebar"]["contents"]))
    return ([f"{p}: not in the sidebar of _quarto.yml" for p in sorted(pages - named)]
          + [f"_quarto.yml: the sidebar names {p}, which does not exist"
             for p in sorted(named - pages)])

# --- what smalldocs leaves to us

KIND = dict(fig="Figure", tbl="Table", eq="Equation", sec="Section")
LABEL = r"(?:fig|tbl|eq|sec)-[\w-]*\w"

def option(cell, name):
    m = re.search(rf"^#\| *{name}: *(.+)$", text(cell), re.M)
    return m and m[1].strip().strip("'\"")

def labels(nb):
    "label -> kind and number, in reading order."
    seen, count = {}, dict.fromkeys(KIND, 0)
    for c in nb["cells"]:
        found = ([option(c, "label")] if c["cell_type"] == "code"
                 else re.findall(rf"\{{#({LABEL})", text(c)))
        for l in found:
            kind = l and l.split("-")[0]
            if kind in KIND and l not in seen:
                count[kind] += 1
                seen[l] = f"{KIND[kind]} {count[kind]}"
    return seen

def maths(s):
    def block(m):
        tag = f' id="{m[2]}"' if m[2] else ""
        return (f'\n\n```{{=html}}\n<div '
                f'class="math-display"{tag}>{convert(m[1].strip(), display="block")}</div>\n```\n\n')  # noqa: E501
    s = re.sub(rf"\$\$(.+?)\$\$(?:\s*\{{#({LABEL})\}})?", block, s, flags=re.S)
    return re.sub(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", lambda m: convert(m[1]), s)

def prose(s, seen):
    "Markdown with references, maths and captions as Quarto would show them."
    def ref(m): return f"[{seen[m[1]]}](#{m[1]})" if m[1] in seen else f"**?@{m[1]}**"
    def figure(m): return f"![{seen[m[3]]}: {m[1]}]{m[2]}{{#{m[3]}"
    def caption(m): return f": {seen.get(m[2], 'Table')}: {m[1]} {{#{m[2]}}}"
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", s, flags=re.M | re.S)
    parts[::2] = [maths(re.sub(rf"(?<![\w/])@({LABEL})", ref, p)) for p in parts[::2]]
    s = re.sub(r"!\[([^\]]*)\](\([^)\n]*\))\{#(fig-[\w-]*\w)", figure, "".join(parts))
    return re.sub(r"^: (.+?) \{#(tbl-[\w-]+)\}", caption, s, flags=re.M)

def numbered(s, name):
    "Source of a labelled cell with its number in its caption."
    return re.sub(r"^(#\| *(?:fig|tbl)-cap: *)(['\"]?)(.*?)\2$",
                  lambda m: m[1] + json.dumps(f"{name}: {m[3]}", ensure_ascii=False), s, flags=re.M)

def plain_code(src):
    """nbdev makes links of names in backticks, in the comments of signatures too, where no link can
    be; and of a function that says nothing of itself it says what Python says of any."""
    for p in sorted(src.rglob("*.ipynb")):
        nb = json.loads(p.read_text(encoding="utf-8"))
        shown = [o["data"] for c in nb["cells"]
                 for o in c.get("outputs", []) if "text/markdown" in o.get("data", {})]
        for d in shown:
            d["text/markdown"] = re.sub(r"^```python\n.*?^```",
                                        lambda m: re.sub(r"\[`([^`\]]*)`\]\([^)\n]*\)", r"`\1`",
                                                         m[0]),
                                        "".join(d["text/markdown"]),
                                        flags=re.M | re.S).replace("*Call self as a function.*", "")
        for c in nb["cells"]: # a helper has no entry that a link could lead to
            if c["cell_type"] == "markdown":
                c["source"] = re.sub(r"\[`((?:\w+\.)*_\w+)`\]\([^)\n]*\)", r"`\1`", text(c))
        p.write_text(json.dumps(nb), encoding="utf-8")

def bind_scripts(page):
    """Put the scripts that an HTML file names in comments in their places: what a builder includes
    is one file."""
    def put(m):
        return (page.parent/m[1]).read_text(encoding="utf-8")
    page.write_text(re.sub(r"^/\* ([\w.]+\.js) \*/\n", put, page.read_text(encoding="utf-8"),
                           flags=re.M), encoding="utf-8")

def rewrite(nb):
    seen = labels(nb)
    for c in nb["cells"]:
        if c["cell_type"] == "markdown": c["source"] = prose(text(c), seen)
        if c["cell_type"] != "code": continue
        if option(c, "label") in seen: c["source"] = numbered(text(c), seen[option(c, "label")])
        for o in c.get("outputs", []):
            html = "".join(o.get("data", {}).get("text/html", []))
            if html:
                o["data"]["text/html"] = html.replace('border="1" class="dataframe"',
                                                      'class="dataframe table table-sm '
                                                      'table-striped"')

def rename(stage):
    """Give each notebook the name of its output file, in links too; source -> new name, relative to
    the site."""
    names = {}
    for p in sorted(stage.rglob("*.ipynb")):
        nb = json.loads(p.read_text(encoding="utf-8")); c = nb["cells"][0]
        m = re.search(r"^output-file: *(\S+)\n", text(c), re.M)
        if c["cell_type"] != "raw" or not m: continue
        c["source"] = re.sub(r"^aliases:\n(?:- .*\n)+", "", text(c).replace(m[0], ""), flags=re.M)
        p.unlink()
        q = p.with_name(Path(m[1]).stem + ".ipynb"); q.write_text(json.dumps(nb), encoding="utf-8")
        names[str(p.relative_to(stage))] = str(q.relative_to(stage))
    return names

def relink(nb, at, names):
    def target(m):
        new = names.get(posixpath.normpath(posixpath.join(at, m[2])))
        return (m[1]
                + (posixpath.join(posixpath.dirname(m[2]), posixpath.basename(new)) if new
                   else m[2]))
    for c in nb["cells"]:
        if c["cell_type"] == "markdown":
            c["source"] = re.sub(r"(\]\(|href=\")([^)\s\"#:]+\.ipynb)", target, text(c))

# --- building

def stage_for_smalldocs(src, stage, conf, out):
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(src, stage, ignore=shutil.ignore_patterns(out, "*.yml"))
    names = rename(stage)
    for p in sorted(stage.rglob("*.ipynb")):
        nb = json.loads(p.read_text(encoding="utf-8"))
        rewrite(nb); relink(nb, str(p.parent.relative_to(stage)), names)
        p.write_text(json.dumps(nb), encoding="utf-8")
    conf = {k: v for k, v in conf.items() if k != "execute"}
    conf["project"] = {**conf["project"], "output-dir": out}
    # smalldocs does both unasked
    for k in ("html-math-method", "respect-user-color-scheme"):
        conf["format"]["html"].pop(k, None)
    yml = yaml.safe_dump(conf, sort_keys=False)
    for a, b in names.items(): yml = re.sub(rf"(?<=[ /]){re.escape(a)}$", b, yml, flags=re.M)
    (stage/"_quarto.yml").write_text(yml, encoding="utf-8")

def render(quarto):
    """The builder's exit code, the folder where it left the site, and the old addresses of its
    pages."""
    cfg = get_config()
    refresh_quarto_yml()
    src = Path(proc_nbs(force=True))
    plain_code(src); bind_scripts(src/"script.html")
    moved = dict(aliases(src))
    if quarto: cmd, at = ["quarto", "render", "--no-cache"], src
    else:
        at = cfg.config_path/"_stage"
        stage_for_smalldocs(src, at, config(cfg.nbs_path/"_quarto.yml"), cfg.doc_path.name)
        cmd = [sys.executable, "-m", "smalldocs.cli", "render", ".", "--strict"]
    return strictly(cmd, at), at/cfg.doc_path.name, moved

def strictly(cmd, at):
    """The exit code of a builder, what it says passed on; not 0 where it warned, which Quarto lets
    pass."""
    warned = False
    with subprocess.Popen(cmd, cwd=at, encoding="utf-8", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as p:
        for line in p.stdout:
            print(line, end="", flush=True)
            warned |= bool(re.match(r"(\x1b\[[\d;]*m)*\s*\[?WARN", line))
    return p.returncode or int(warned)

def self_contained(root):
    "Both builders' themes ask Google for a font; the site loads nothing from elsewhere."
    asks = r"""@import\s*(?:url\(\s*(['"]?)https?:[^)'"]*\1\s*\)|(['"])https?:.*?\2)[^;]*;"""
    for p in sorted(root.rglob("*.css")):
        css = p.read_text(encoding="utf-8")
        if (kept := re.sub(asks, "", css)) != css: p.write_text(kept, encoding="utf-8")

def add_atlas(root):
    """The twin atlas beside the page that shows it; its art comes from package registries, not from
    the repository."""
    from live_atlas import kept
    shutil.copy(kept(), root/"findings"/"twin_atlas.html")

def aliases(src):
    """Old address -> page, both relative to the site, of every page in `src` that names its old
    addresses."""
    for name in sources(src):
        front = text(json.loads((src/name).read_text(encoding="utf-8"))["cells"][0])
        page = (yaml.safe_load(front.strip().strip("-")) or {}) if front.startswith("---") else {}
        for a in page.get("aliases", []):
            yield a.lstrip("/"), str(Path(name).with_name(page["output-file"]))

def redirect(root, moved):
    "What Quarto does by itself: old addresses lead to the pages where their contents are now."
    for old, new in moved.items():
        if (root/old).exists(): continue
        to = posixpath.relpath(new, posixpath.dirname(old) or ".")
        (root/old).write_text(
            f'''<!doctype html><html lang="en"><meta charset="utf-8"><title>Moved</title><link rel="canonical" href="{to}">
<meta http-equiv="refresh" content="0; url={to}"><a href="{to}">This page has moved.</a></html>''',  # noqa: E501
            encoding="utf-8")

# --- checking what was built, whoever built it

Page = namedtuple("Page", "ids links media words")

class Reader(HTMLParser):
    "The ids, links, media and words of a page."
    def __init__(self, html):
        super().__init__(); self.page, self.quiet = Page(set(), [], [], []), 0
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.page.ids.update(filter(None, [a.get("id"), tag == "a" and a.get("name")]))
        if tag == "a" and a.get("href"): self.page.links.append(a["href"])
        if tag in ("img", "source", "script", "video", "iframe") and a.get("src"):
            self.page.media.append(a["src"])
        if tag == "link" and a.get("rel") == "stylesheet": self.page.media.append(a["href"])
        self.quiet += tag in ("code", "pre", "script", "style")
    def handle_endtag(self, tag): self.quiet -= tag in ("code", "pre", "script", "style")
    def handle_data(self, data):
        if self.quiet <= 0: self.page.words.append(data)

def target(at, link, root):
    "File and fragment that a link on page `at` leads to; None for a link that leaves the site."
    u = urlsplit(link)
    if u.scheme or u.netloc: return None
    path = (root/unquote(u.path).lstrip("/") if u.path.startswith("/")
            else at.parent/unquote(u.path) if u.path else at)
    path = Path(posixpath.normpath(path))
    return path/"index.html" if path.is_dir() else path, unquote(u.fragment)

def page_errors(at, pages, root):
    p = pages[at]
    for link in p.links + p.media:
        to, fragment = target(at, link, root) or (None, None)
        if to is None: continue
        if not to.exists():
            kind = "image or file" if link in p.media else "link"
            yield f"{kind} to {link}, which does not exist"
        elif fragment and to in pages and fragment not in pages[to].ids:
            yield f"link to {link}: no such place on that page"
    words = "".join(p.words)
    for m in re.findall(rf"\?@[\w-]+|(?<![\w/.])@{LABEL}", words): yield f"unresolved reference {m}"
    for m in re.findall(r"\{\{<.*?>\}\}|^:::.*$|#\|\s*[\w-]+", words, re.M):
        yield f"markup shown as text: {m}"

def site_errors(root):
    pages = {p: Reader(p.read_text(encoding="utf-8")).page for p in sorted(root.rglob("*.html"))}
    print(f"{len(pages)} pages, {sum(len(p.links) + len(p.media) for p in pages.values())} links "
          "and files")
    errors = [f"{p.relative_to(root)}: {e}" for p in pages
              for e in dict.fromkeys(page_errors(p, pages, root))]
    return errors or ([] if (root/"index.html").exists() else ["no index.html was made"])

def main():
    cfg, quarto = get_config(), bool(shutil.which("quarto")) and "--no-quarto" not in sys.argv
    errors = [*sidebar_errors(cfg.nbs_path, config(cfg.nbs_path/"_quarto.yml")),
              *slow_errors(cfg.nbs_path)]
    if not errors:
        rc, built, moved = render(quarto)
        if not built.exists(): return "the build failed"
        shutil.rmtree(cfg.doc_path, ignore_errors=True); shutil.move(built, cfg.doc_path)
        self_contained(cfg.doc_path); add_atlas(cfg.doc_path); redirect(cfg.doc_path, moved)
        errors = ["the builder warned or failed: see above"]*bool(rc) + site_errors(cfg.doc_path)
    for e in errors: print(e)
    if not errors:
        print(f"{cfg.doc_path.name}/index.html, by "
              f"{'Quarto' if quarto else 'smalldocs, as a preview'}")
    return int(bool(errors))

if __name__ == "__main__": sys.exit(main())
