"""Write README.md from nbs/index.ipynb with nbdev's own processors; with --check, say whether it is
current.

Links and images are relative to nbs/ in the notebook and to the repository in README.md. Images
that cells draw go to nbs/images/."""
import base64, os, posixpath, re, sys
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults

KIND = dict(fig="figure", tbl="table", eq="equation", sec="section")

def rebase(target):
    "A link of the notebook as README.md needs it."
    if re.match(r"[a-z][\w+.-]*:|[#/]", target): return target
    return posixpath.normpath(posixpath.join(get_config().nbs_path.name, target))

def repository(md):
    """Markdown for a repository page: no Quarto blocks or attributes, no links that only the site
    has."""
    md = re.sub(r"^:::.*\n?", "", md, flags=re.M)
    md = re.sub(r"(?<=\))\{[^}\n]*\}| *\{#[\w-]+\}$", "", md, flags=re.M)
    md = re.sub(r"(?<![\w/])@(fig|tbl|eq|sec)-[\w-]*\w", lambda m: f"the {KIND[m[1]]}", md)
    md = re.sub(r"(?<!!)\[([^\]]*)\]\(/[^)]*\)", r"\1", md)
    md = re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + rebase(m[2]), md)
    return re.sub(r"((?:src|href)=\")([^\"]+)", lambda m: m[1] + rebase(m[2]), md)

def prose(md):
    "`md` for the repository, code left alone."
    return "".join(p if i % 2 else repository(p)
                   for i, p in enumerate(re.split(r"(^```.*?^```$)", md, flags=re.M | re.S)))

def output_md(o, images, opts={}):
    d = {k: "".join(v) for k, v in o.get("data", {}).items()}
    if "image/png" in d:
        name = f"images/index-{len(images) + 1}.png"
        images[name] = base64.b64decode(d["image/png"])
        said = [prose(opts[k].strip('"')) if k in opts else "" for k in ("fig-alt", "fig-cap")]
        return "\n\n".join(x
                           for x in (f"![{said[0]}](nbs/{name})", said[1] and f"*{said[1]}*") if x)
    if "text/markdown" in d: return prose(d["text/markdown"])
    if "<table" in d.get("text/html", ""):
        return re.sub(r"<style.*?</style>\s*", "", d["text/html"], flags=re.S)
    text = "".join(o.get("text", [])) or d.get("text/plain", "")
    return "\n".join("    " + l if l else "" for l in text.rstrip().splitlines())

def cell_md(c, images):
    s = c.source.strip()
    if c.cell_type == "raw": return ""
    if c.cell_type == "markdown": return prose(s)
    opts = dict(re.findall(r"^#\| *([\w-]+): *(.*)$", s, re.M))
    code = "\n".join(l for l in s.splitlines() if not l.startswith("#|")).strip()
    shown = [f"```python\n{code}\n```"] if code and opts.get("echo") != "false" else []
    return "\n\n".join(x
                       for x in shown + [output_md(o, images, opts) for o in c.get("outputs", [])]
                       if x.strip())

def readme():
    "File name -> content, for all that README.md needs."
    cfg, images = get_config(), {}
    os.environ["IN_TEST"] = "1"
    nb = read_nb(cfg.nbs_path/cfg.readme_nb); FilterDefaults()(nb)
    fm, body = (nb.frontmatter_,
                [x for c in nb.cells if (x := cell_md(c, images)) and not x.startswith("<!--")])
    text = "\n\n".join([f"# {fm.get('title', cfg.title)}", fm.get("description", ""), *body]) + "\n"
    return {"README.md": re.sub(r"\n{3,}", "\n\n", text).encode(),
            **{f"nbs/{k}": v for k, v in images.items()}}

def main():
    root = get_config().config_path
    files = {root/k: v for k, v in readme().items()}
    stale = [p for p, v in files.items() if not p.exists() or p.read_bytes() != v]
    if "--check" in sys.argv:
        return f"{', '.join(p.name for p in stale)}: stale; run make readme" if stale else None
    for p in stale: p.parent.mkdir(exist_ok=True); p.write_bytes(files[p])

if __name__ == "__main__": sys.exit(main())
