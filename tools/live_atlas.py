"""The twin atlas of the site: CLIP's and DINO's maps of held-out scenes, made from the released encoders where the site is built.

The art may not be in the repository, so the page is not either. It is kept in the cache under a name of all that it is made from.
"""
import shutil, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCENES, NAMES = 1500, ("clip", "dino")

def make(path):
    "Write the page. The first time also loads the drawings and compiles UMAP: a minute or more."
    from ccd import emoji
    from ccd.comparison import write_atlas
    from ccd.core import World
    from ccd.embeddings import embed, load_embeddings
    from ccd.neighbors import aligned
    from ccd.pairs import mine
    corpus = emoji.scenes(World(test_scenes=SCENES), "test")
    with tempfile.TemporaryDirectory() as tmp:
        found = [load_embeddings(embed(f"ccd:emoji/{n}", corpus, Path(tmp) / n)) for n in NAMES]
    write_atlas(path, {e.card["name"]: e for e in found}, aligned(*found), mine(*found, k=40), lambda r: corpus[int(r)]["image"],
                ["kind", "category", "style", "ground_color", "word"], emoji.attribution().splitlines())

def kept():
    "Where the page lies in the cache; it is made if it is not there."
    from ccd.core import cache_dir, code_revision, content_hash, file_hash
    weights = [file_hash(ROOT / f"results/emoji-small/encoders/{n}-0/encoder.safetensors") for n in NAMES]
    page = cache_dir("site", f"atlas-{content_hash([weights, code_revision()['source'], file_hash(Path(__file__))])}.html")
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        print(f"making the twin atlas of {SCENES:,} scenes", flush=True)
        make(page)
    return page

if __name__ == "__main__": shutil.copy(kept(), sys.argv[1])
