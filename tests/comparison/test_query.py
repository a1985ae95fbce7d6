"`ccd neighbors`: the nearest images to one image, for several encoders."
import numpy as np, pandas as pd, pytest
from PIL import Image
from ccd.cli import main
from ccd.comparison.many.query import find_neighbors
from ccd.encoders.embeddings import load_embeddings
from ccd.files import UserError
from ccd.presets import preset

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    home, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k in range(30):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 40)).save(home / f"{k:02}.png")
    return home

def ask(query, photos, out, k=5, encoders=("pixels:4", "colors:4"), **more):
    page = find_neighbors(str(query), list(encoders), str(photos), preset("smoke"), out, k, **more)
    return page, pd.read_csv(out / "neighbors.csv")

def test_neighbors_are_those_of_all_cosines(photos, tmp_path):
    page, table = ask("07.png", photos, tmp_path / "out")
    for encoder, folder in (("raw pixels", "pixels-4"), ("color histogram", "colors-4")):
        own = table[table.encoder.str.startswith(encoder[:5])]
        vectors = load_embeddings(next((tmp_path / "out/vectors").glob(f"{folder}*")))
        row = list(vectors.items.item_id).index("07.png")
        cosines = vectors.unit() @ vectors.unit()[row]
        order = [i for i in np.argsort(-cosines, kind="stable") if i != row][:5]
        assert list(own.item_id) == list(vectors.items.item_id[order])
        assert np.allclose(own.cosine, cosines[order], atol=1e-6)
    assert "07.png" not in set(table.item_id) # itself
    both = table.groupby("item_id").encoder.nunique()
    assert (table.found_by == table.item_id.map(both)).all()
    assert "src=\"data:image" in page.read_text(encoding="utf-8")

def test_a_copy_under_another_name_is_the_query_itself(photos, tmp_path):
    copy = tmp_path / "copy.png"
    Image.open(photos / "03.png").save(copy)
    _, table = ask(copy, photos, tmp_path / "out")
    assert "03.png" not in set(table.item_id)
    assert "1 with the same pixels is left out" in (tmp_path / "out/summary.txt").read_text()
    other = tmp_path / "other.png" # an image that is nowhere among them
    Image.new("RGB", (40, 40), "red").save(other)
    _, table = ask(other, photos, tmp_path / "out")
    assert "same pixels" not in (tmp_path / "out/summary.txt").read_text()

def test_a_second_query_embeds_nothing_again(photos, tmp_path):
    ask("00.png", photos, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/vectors").rglob("vectors.npy")}
    _, table = ask("01.png", photos, tmp_path / "out", k=40)
    assert before == {p: p.stat().st_mtime_ns
                      for p in (tmp_path / "out/vectors").rglob("vectors.npy")}
    assert before and not (tmp_path / "out/query").exists()
    assert (table.groupby("encoder").size() == 29).all() # all others, where k is larger

def test_private_images_are_not_shown(photos, tmp_path):
    page, _ = ask("00.png", photos, tmp_path / "out", thumbnails=False)
    assert "data:image" not in page.read_text(encoding="utf-8")

@pytest.mark.parametrize("query, why", [("nope.png", "neither a file nor the id"),
                                        ("broken.png", "could be opened")])
def test_a_query_that_is_none_says_why(query, why, photos, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = tmp_path / query if query == "broken.png" else query
    with pytest.raises(UserError, match=why): ask(given, photos, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["neighbors", "00.png", "--images", str(photos), "--out", str(tmp_path / "x")])
    assert "name one encoder or more" in capsys.readouterr().err
    with pytest.raises(UserError, match="one or more"):
        ask("00.png", photos, tmp_path / "y", k=0)
