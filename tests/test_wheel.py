"""The wheel alone, in a process that does not see the clone: it compares a folder of images,
exports a run, and has what the README imports."""
import os, re, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

def run(*command, cwd, **env):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True,
                          encoding="utf-8", env=os.environ | env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

@pytest.fixture(scope="module")
def alone(tmp_path_factory): # a folder with the installed wheel, and one to work in
    home = tmp_path_factory.mktemp("wheel")
    (home / "source").mkdir()
    for name in ("setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "source")
    shutil.copytree(ROOT / "ccd", home / "source/ccd",
                    ignore=shutil.ignore_patterns("__pycache__"))
    run("setup.py", "-q", "bdist_wheel", "-d", home / "dist", cwd=home / "source")
    wheel, = (home / "dist").glob("controlled_clip_dino-*.whl")
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", home / "installed",
        wheel, cwd=home)
    shutil.rmtree(home / "source")
    (home / "work").mkdir()
    return home / "work", dict(PYTHONPATH=str(home / "installed"), PYTHONSAFEPATH="1")

def test_the_readme_imports_what_is_there(alone):
    work, env = alone
    where = run("-c", "import ccd; print(ccd.__file__)", cwd=work, **env).strip()
    assert where.startswith(env["PYTHONPATH"])
    block = re.search(r"```python\n(from ccd.*?)```",
                      (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    run("-c", block, cwd=work, **env)
    assert run("-m", "ccd.cli", "--version", cwd=work, **env).startswith("ccd 0.")

def test_it_compares_a_folder_and_exports_a_run(alone):
    work, env = alone
    rng = np.random.default_rng(0)
    for label in range(3):
        (work / f"images/{label}").mkdir(parents=True)
        for number in range(20):
            image = rng.integers(0, 255, (32, 32, 3)) // 2 + 40 * label
            Image.fromarray(image.astype(np.uint8)).save(work / f"images/{label}/{number}.png")
    run("-m", "ccd.cli", "compare", "random:0", "random:1", "--images", "images", "--out", "out",
        "--preset", "smoke", "--analysis.n-resamples", "50", cwd=work, **env)
    assert (work / "out/report.html").exists()
    run("-m", "ccd.cli", "train", "dino", "--preset", "smoke", "--control.samples", "64", "--out",
        "dino", cwd=work, **env)
    run("-m", "ccd.cli", "export", "dino", "--to", "timm", "--out", "timm", cwd=work, **env)
    assert (work / "timm/model.safetensors").exists()
