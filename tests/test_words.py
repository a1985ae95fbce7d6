"""Pages, README, docstrings, strings and names in code are spelled as in America, but for names and
keys that are stored."""
import ast, json, re
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
BRITISH = re.compile(
    r"(?i)\b\w*(?:colour|neighbour|behaviour|favour|honour|licence|grey|catalogue|learnt|spelt|labelled|labelling|modelling|travell|"
                     r"centre[sd]?\b|centring|artefact|whilst|defence|programme[sd]?\b|(?:optim|normal|standard|regular|organ|recogn|minim|maxim|"
                     r"initial|general|summar|quant|token|visual|random|categor|character|emphas|util|penal|local|synchron)is(?:e[srd]?|ing|ation)\b)\w*")
CODE = re.compile(r"`[^`]*`|```.*?```|\]\([^)]*\)|https?://\S+|\{[#.][^}]*\}", re.S)

def british(text): return [m[0] for m in BRITISH.finditer(CODE.sub(" ", text))]

def pages():
    for p in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if any(x.startswith((".", "_")) for x in p.relative_to(ROOT).parts): continue
        prose = "\n".join("".join(c["source"])
                          for c in json.loads(p.read_text(encoding="utf-8"))["cells"]
                          if c["cell_type"] == "markdown")
        yield str(p.relative_to(ROOT)), re.sub(r"```.*?```", " ", prose, flags=re.S)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"):
        yield name, (ROOT / name).read_text(encoding="utf-8")

def docstrings():
    for p in sorted((ROOT / "ccd").rglob("*.py")):
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))):
            if (isinstance(n, (ast.Module, ast.FunctionDef, ast.ClassDef))
                and (said := ast.get_docstring(n))):
                yield f"{p.relative_to(ROOT)}: {getattr(n, 'name', 'module')}", said

# word -> modules in which it is stored or hashed: settings, columns, keys, data, names of files or
# of another library's options
STORED = {
    "grey": "comparison/attributes comparison/perturbations data/augment data/emoji/drawings "
            "data/images report/similarity",
    "colour": "comparison/attribution data/emoji/questions probing/datasets report/similarity",
    "centre": "comparison/linked_maps study/scaling/curves study/scaling/grid",
    "learnt": "data/emoji/checks probing/tables probing/tasks study/scaling/runs vqa/command "
              "vqa/llava/answering vqa/llava/conversations vqa/llava/model",
    "licence": "probing/datasets", "licences": "probing/datasets",
    "standardise": "probing/protocols", "catalogue": "data/emoji/drawings",
    "neighbours": "study/emoji", "regularisation": "comparison/neighbors"}

def strings_and_names():
    for p in sorted((ROOT / "ccd").rglob("*.py")):
        where = p.relative_to(ROOT).as_posix()
        # settings are keys of stored files
        if p.name.startswith("_") or where in ("ccd/settings.py", "ccd/cli.py", "ccd/commands.py"):
            continue
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))):
            said = (getattr(n, "value", None) if isinstance(n, ast.Constant)
                    else getattr(n, "id", None) or getattr(n, "name", None)
                    or getattr(n, "arg", None))
            if isinstance(said, str) and len(said) < 4000:
                yield f"{where}:{getattr(n, 'lineno', 0)}", said.replace("_", " ")

def test_strings_and_names_are_in_american_spelling():
    def allowed(where, word):
        return where.split(":")[0].removeprefix("ccd/").removesuffix(".py") in STORED.get(word,
                                                                                          "").split()
    assert {where: w
            for where, text in strings_and_names()
            if (w := [x for x in british(text) if not allowed(where, x)])} == {}

def test_pages_are_in_american_spelling():
    assert {where: w for where, text in pages() if (w := british(text))} == {}

def test_no_page_shows_the_form_in_which_notebooks_store_lines():
    assert not [where for where, prose in pages() if '\\n"' in CODE.sub(" ", prose)]

def test_docstrings_are_in_american_spelling():
    assert {where: w for where, text in docstrings() if (w := british(text))} == {}

@pytest.mark.parametrize("text, seen",
                         [("the colours of neighbours", 2), ("Normalised, it is learnt", 2),
                          ("the center of a neighborhood", 0),
                                        ("`--colour` and [a page](neighbours.ipynb)", 0),
                          ("an exercise, otherwise precise", 0), ("optimiser", 1)])
def test_a_british_form_is_seen(text, seen): assert len(british(text)) == seen
