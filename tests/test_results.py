"Every result that is kept says which command, code and machine made it, and is still what it was."
import json, re, shutil
from pathlib import Path
import pytest
from ccd.files import content_hash, file_hash

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOLDERS = [p for p in sorted(RESULTS.iterdir()) if p.is_dir() and p.name != "bench"]

def said(m):
    "What a seal leaves out."
    if not str(m.get("command") or "").strip(): yield "no command"
    if not re.fullmatch("[0-9a-f]{40}", str(m.get("code", {}).get("commit"))): yield "no commit"
    if not re.fullmatch("[0-9a-f]{16}", str(m.get("code", {}).get("source"))):
        yield "no hash of the code"
    for k in ("cpu", "cores", "precision", "torch"):
        if not m.get("machine", {}).get(k): yield f"no {k} of the machine"
    if re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", json.dumps(m)):
        yield "a path of one machine"

def faults(folder):
    "What is wrong with a folder of results and its manifest."
    if not (folder / "manifest.json").exists(): yield "no manifest.json"; return
    m = json.loads((folder / "manifest.json").read_text())
    yield from said(m)
    held = {p.relative_to(folder).as_posix()
            for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    for f in sorted(held ^ m["outputs"].keys()):
        yield f"{f}: {'not in the manifest' if f in held else 'missing'}"
    for f in sorted(held & m["outputs"].keys()):
        if file_hash(folder / f) != m["outputs"][f]["sha256"]:
            yield f"{f}: changed since it was sealed"
    if m["settings_hash"] != content_hash(m["settings"]):
        yield "the settings are not those of their hash"
    if m["outputs_hash"] != content_hash(m["outputs"]):
        yield "the outputs are not those of their hash"

@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_folder_is_sealed(folder): assert list(faults(folder)) == []

def test_nothing_lies_beside_the_folders():
    assert len(FOLDERS) > 4 and [p for p in RESULTS.iterdir() if p.is_file()] == []

@pytest.mark.parametrize("table", sorted((RESULTS / "bench").glob("*.csv")), ids=lambda p: p.stem)
def test_every_benchmark_is_sealed(table):
    m = json.loads(table.with_suffix(".json").read_text())
    assert list(said(m)) == [] and m["sha256"] == file_hash(table)

@pytest.mark.parametrize("harm, fault", [
    (lambda d: (d / "manifest.json").unlink(), "no manifest.json"),
    (lambda d: (d / "more.csv").write_text("a"), "more.csv: not in the manifest"),
    (lambda d: (d / "probes.csv").unlink(), "probes.csv: missing"),
    (lambda d: (d / "probes.csv").write_text("a"), "probes.csv: changed since it was sealed"),
    (lambda d: rewrite(d, command=" "), "no command"),
    (lambda d: rewrite(d, code={}), "no commit"),
    (lambda d: rewrite(d, settings={}), "the settings are not those of their hash"),
    (lambda d: rewrite(d, command="ccd study --out /home/me/out"), "a path of one machine"),
])
def test_a_broken_seal_is_seen(tmp_path, harm, fault):
    copy = shutil.copytree(RESULTS / "mini", tmp_path / "mini")
    harm(copy)
    assert fault in faults(copy)

def rewrite(folder, **change):
    m = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(m | change))
