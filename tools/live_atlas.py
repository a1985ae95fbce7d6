"""The twin atlas of the site: CLIP's and DINO's maps of held-out scenes, made from the released
encoders where the site is built.

The art may not be in the repository, so the page is not either. It is kept in the cache under a
name of all that it is made from."""
import shutil, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCENES, NAMES = 1500, ("clip", "dino")

def make(path):
    "Write the page. The first time also loads the drawings and compiles UMAP: a minute or more."
    from ccd.data.emoji import drawings, scenes
    from ccd.comparison.report import write_atlas
    from ccd.settings import DataSettings
    from ccd.encoders.embeddings import load_embeddings
    from ccd.encoders.extraction import embed
    from ccd.comparison.neighbors import _aligned_umap
    from ccd.comparison.search import mine_pairs
    corpus = scenes.scenes(DataSettings(test_scenes=SCENES), "test")
    with tempfile.TemporaryDirectory() as tmp:
        found = [load_embeddings(embed(f"ccd:emoji/{n}", corpus, Path(tmp) / n)) for n in NAMES]
    write_atlas(path, {e.card["name"]: e for e in found}, _aligned_umap(*found),
                mine_pairs(*found, k=40), lambda r: corpus[int(r)]["image"],
                ["kind", "category", "style", "ground_color", "word"],
                drawings.license_notice().splitlines())

def kept():
    "Where the page lies in the cache; it is made if it is not there."
    from ccd.files import cache_dir, content_hash, file_hash
    from ccd.runs import code_revision
    weights = [file_hash(ROOT / f"results/emoji-small/encoders/{n}-0/encoder.safetensors")
               for n in NAMES]
    page = cache_dir("site",
                     f"atlas-{content_hash([weights, code_revision()['source'], file_hash(Path(__file__))])}.html")  # noqa: E501
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        print(f"making the twin atlas of {SCENES:,} scenes", flush=True)
        make(page)
    return page

if __name__ == "__main__": shutil.copy(kept(), sys.argv[1])
