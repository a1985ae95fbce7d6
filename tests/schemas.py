"What the files of a folder of results hold, and in what two folders are not alike."
import json, re
import pandas as pd
from ccd.files import load_table, renamed
from conftest import ROOT

RESULTS = ROOT / "results"

def kind(column):
    "number, truth or text; None of a column that is empty."
    full = column.dropna()
    if not len(full): return None
    return ("truth" if full.map(type).eq(bool).all() else "number" if full.dtype.kind in "iufb"
            else "text")

def columns(file):
    "Name -> kind, of a table; the keys of anything else that is JSON."
    if file.suffix == ".json":
        new = renamed("column", file.stem)
        return dict.fromkeys(new.get(k, k) for k in json.loads(file.read_text()))
    if file.stat().st_size < 2: return {}
    read = dict(csv=load_table, parquet=load_table,
                jsonl=lambda f: pd.read_json(f, lines=True))[file.suffix[1:]]
    return {c: kind(v) for c, v in read(file).items()}

SEED = re.compile(r"^\w+(?= \(another seed)|(?<=two seeds of ).+") # of which encoder it is

def schema(folder):
    "File -> its columns, manifests left out; all seeds, and all runs of a sweep, are one file."
    found = {}
    for f in sorted(f
                    for f in folder.rglob("*")
                    if f.suffix in (".csv", ".json", ".jsonl", ".parquet")
                    and f.stem != "manifest"):
        name = re.sub(r"^[\w.-]+-w\d+[^/]*", "RUN", f.relative_to(folder).as_posix())
        known = found.setdefault(re.sub(r"\b(clip|dino|siglip)-\d\b", r"\1", name), {})
        known.update({SEED.sub("one", c): k or known.get(c) for c, k in columns(f).items()})
    return found

def differences(made, kept):
    "What is not alike in two folders."
    a, b = schema(made), schema(kept)
    yield from (f"{f}: only in {'what is written now' if f in a else 'results'}"
                for f in sorted(a.keys() ^ b.keys()))
    for f in sorted(a.keys() & b.keys()):
        if list(a[f]) != list(b[f]): yield f"{f}: now {list(a[f])}, in results {list(b[f])}"
        else:
            yield from (f"{f}: {c} is now {k}, in results {b[f][c]}"
                        for c, k in a[f].items() if k and b[f][c] and k != b[f][c])
