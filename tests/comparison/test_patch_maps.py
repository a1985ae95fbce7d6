"Patch tokens of the pairs on which two encoders disagree: colors of one basis, and matches."
import numpy as np, pandas as pd, pytest
from sklearn.decomposition import PCA
from ccd.comparison.command import compare
from ccd.comparison.many import patches
from ccd.encoders.inputs import embed_images, open_source
from ccd.presets import preset

PARTS = ("attributes", "perturbations", "maps")

def test_colors_are_the_main_components_of_all_tokens():
    tokens = patches._unit_tokens(np.random.default_rng(0).normal(size=(5, 9 * 12)), 9)
    assert np.allclose(np.linalg.norm(tokens, axis=2), 1)
    colors = patches._token_colors(tokens).reshape(-1, 3)
    parts = PCA(3).fit_transform(tokens.reshape(-1, 12))
    for k in range(3): # up to a sign, and apart from the ends of the scale
        inside = (colors[:, k] > 0) & (colors[:, k] < 1)
        assert abs(np.corrcoef(colors[inside, k], parts[inside, k])[0, 1]) > 0.9999
    assert colors.min() >= 0 and colors.max() <= 1

def test_equal_images_have_equal_colors_and_full_matches():
    tokens = patches._unit_tokens(np.random.default_rng(1).normal(size=(3, 4 * 8)), 4)
    tokens[2] = tokens[0]
    colors = patches._token_colors(tokens)
    assert np.allclose(colors[0], colors[2])
    assert np.allclose(patches._token_match(tokens[0], tokens[2]), 1)
    assert (patches._token_match(tokens[0], tokens[1]) < 1).all()
    assert patches._token_colors(tokens[:, :, :2]).shape == (3, 4, 3) # of two dimensions

@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("patches") / "out"
    compare("random:0", "random:1", "emoji-scenes", preset("smoke"), out, baselines=(), skip=PARTS)
    return out

def test_the_shown_pairs_are_those_of_the_list_and_their_tokens_those_of_the_encoder(compared,
                                                                                   tmp_path):
    pairs = patches._shown_pairs(pd.read_parquet(compared / "pairs/pairs.parquet"))
    rows = np.load(compared / "patches/rows.npy")
    assert set(rows) == set(pairs.i) | set(pairs.j) and len(pairs) == 6
    settings = preset("smoke")
    corpus = open_source("emoji-scenes", settings).corpus.select(rows)
    own = embed_images("random:0#feature=patches", "some", settings, tmp_path / "own", corpus)
    n_tokens = patches._count_tokens("random:0", settings)
    tokens = patches._unit_tokens(np.array(own.vectors), n_tokens)
    matches = np.load(compared / "patches/matches-a.npy")
    first = pairs.iloc[0]
    one, other = (tokens[np.searchsorted(rows, row)] for row in (first.i, first.j))
    assert np.allclose(matches[0, 0].ravel(), (one @ other.T).max(1), atol=1e-5)
    assert np.allclose(matches[0, 1].ravel(), (other @ one.T).max(1), atol=1e-5)
    assert np.load(compared / "patches/colors-b.npy").shape == (len(rows), *matches.shape[2:], 3)
    assert not (compared / "patches/vectors").exists()
    assert "Which part of the images" in (compared / "report.html").read_text(encoding="utf-8")

def test_an_encoder_without_patches_is_named_and_the_rest_is_there(tmp_path, capsys):
    out = tmp_path / "out"
    compare("random:0", "pixels:8", "emoji-scenes", preset("smoke"), out, baselines=(), skip=PARTS)
    said = capsys.readouterr()
    assert "patches: left out" in said.err + said.out
    assert "pixels:8" in said.err + said.out # whose it is
    assert not list((out / "patches").glob("*.npy"))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which part of the images" not in page and "Nearest neighbors" in page
