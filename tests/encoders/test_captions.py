"""Captions as an encoder: vectors of captions and of nothing else, beside any encoder of images;
and how much of an encoder's neighborhoods captions explain, by the number of images."""
import numpy as np, pandas as pd, pytest, torch
from scipy.stats import rankdata
from ccd.cli import main
from ccd.comparison.neighbors import gallery_curve, nearest_neighbors
from ccd.encoders.adapters.text import _load_caption_encoder, load_text_encoder
from ccd.encoders.embeddings import Embeddings
from ccd.encoders.extraction import _embed_captions
from ccd.encoders.inputs import check_known, embed_images, load_encoder, open_source
from ccd.files import UserError, load_table
from ccd.presets import preset
from ccd.settings import override
from ccd.data.corpora import open_corpus
from ccd.training.loop import train

SMOKE = override(preset("smoke"), **{"control.samples": 64, "analysis.n_resamples": 50})

@pytest.fixture(scope="module")
def scenes(): return open_source("scenes", SMOKE).corpus

@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return train("clip", SMOKE, open_corpus(SMOKE.data).corpus, tmp_path_factory.mktemp("r") / "c")

def test_an_image_has_the_mean_of_its_captions(scenes, tmp_path):
    found = embed_images("text:minilm", "scenes", SMOKE, tmp_path / "v", scenes)
    assert list(found.items.item_id) == scenes["item_id"][:]
    net, said = _load_caption_encoder("minilm").tower, scenes["captions"][3]
    each = []
    for caption in said: # alone, without padding
        tokens = net.tokenizer(caption, return_tensors="pt")
        with torch.no_grad(): hidden = net.net(**tokens).last_hidden_state[0]
        each.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    assert np.allclose(found.vectors[3], torch.stack(each).mean(0), atol=2e-3)

def test_a_text_tower_of_ours(clip, scenes, tmp_path):
    found = embed_images(f"text:ccd:{clip}", "scenes", SMOKE, tmp_path / "v", scenes)
    wanted = load_text_encoder(f"ccd:{clip}")(scenes["captions"][0]).mean(0)
    assert np.allclose(found.vectors[0], wanted, atol=2e-3)

@pytest.mark.parametrize("act, said", [
    (lambda home: _embed_captions("minilm", open_source("scenes", SMOKE).corpus.map(
        lambda row, n: dict(captions=row["captions"] if n else []), with_indices=True,
        features=open_source("scenes", SMOKE).corpus.features), home / "v"),
     "and 1 of 192 images have none"),
    (lambda home: _embed_captions("minilm", open_source("scenes", SMOKE).corpus.remove_columns(
        "captions"), home / "v"), "and 192 of 192 images have none"),
    (lambda home: check_known("text:", SMOKE), "text: has no name"),
    (lambda home: check_known("text:nope/nope", SMOKE), "no language model 'nope/nope'"),
    (lambda home: check_known("text:ccd:emoji/dino", SMOKE), "without captions"),
    (lambda home: load_encoder("text:minilm", SMOKE), "reads captions and no images")])
def test_what_cannot_be_read_is_told(act, said, tmp_path):
    with pytest.raises(UserError, match=said): act(tmp_path)

def test_an_encoder_beside_its_captions(tmp_path, capsys):
    main(["compare", "ccd:emoji/clip", "text:minilm", "--preset", "smoke", "--baselines",
          "pixels:16", "--skip", "maps", "--out", str(tmp_path / "out"),
          "--analysis.n-resamples", "50"])
    table = load_table(tmp_path / "out/neighbors/gallery.csv")
    assert table.overlap.iloc[-1] > table.null_p95.iloc[-1] and table.n.iloc[-1] == 192
    overlap = load_table(tmp_path / "out/neighbors/overlap.csv").set_index("k").overlap[10]
    assert table.overlap.iloc[-1] == pytest.approx(overlap) # equal captions are ties: broken once
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Information imbalance from CLIP to captions by minilm" in page

def toy(vectors):
    return Embeddings(vectors, pd.DataFrame(dict(item_id=[f"p{k}" for k in range(len(vectors))])),
                      {})

def test_the_imbalance_is_its_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6))
    a, b = toy(x), toy(np.concatenate([x[:, :3], rng.normal(size=(150, 3))], 1))
    row = gallery_curve(a, b, np.arange(150), n_resamples=20).iloc[-1]
    cosines = b.unit().astype(float) @ b.unit().T.astype(float)
    np.fill_diagonal(cosines, -9)
    ranks = np.stack([rankdata(-own) for own in cosines])
    near = nearest_neighbors(a, 1)[:, 0]
    assert abs(row.a_to_b - 2 * ranks[np.arange(150), near].mean() / 150) < 0.02

def test_an_encoder_and_itself():
    x = toy(np.random.default_rng(1).normal(size=(120, 6)))
    row = gallery_curve(x, x, np.arange(120), n_resamples=20).iloc[-1]
    assert row.overlap > 0.999 and abs(row.a_to_b - 2 / 120) < 1e-6

def test_galleries_are_nested_and_end_with_all():
    x, y = (toy(np.random.default_rng(seed).normal(size=(600, 6))) for seed in (1, 2))
    table = gallery_curve(x, y, np.arange(600), n_resamples=20)
    assert table.n.tolist() == [250, 500, 600]
    assert table.overlap.is_monotonic_decreasing and (table.p > 0.01).all()
