"""`ccd compare` on what people bring: two encoders, vectors of their own, folders, an encoder and
itself."""
import io, json, shutil, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from PIL import Image
from ccd.cli import main
from ccd.encoders.inputs import shared_init_spec
from ccd.encoders.loading import load
from ccd.comparison.command import _STAGES, compare, export_comparison
from ccd.files import UserError, file_hash, load_table
from conftest import OPTIONS, finish, signal_when, start
from schemas import RESULTS, differences

FAST = ["--skip", "attributes", "perturbations", "maps", "--baselines"]

def said(out): return (out / "summary.txt").read_text()

@pytest.fixture(scope="module")
def whole_comparison(whole, tiny, tmp_path_factory):
    """Both encoders of the tiny study, with everything: its folder, the encoders, the settings, the
    references."""
    out = tmp_path_factory.mktemp("compare") / "all"
    runs = [f"ccd:{whole / 'train' / r}" for r in ("clip-0", "dino-0")]
    settings = replace(tiny, analysis=replace(tiny.analysis, pairs=60))
    beside = dict(seed_replicate_a=runs[1], seed_replicate_b=runs[0])
    return compare(*runs, "scenes", settings, out, **beside).parent, runs, settings, beside

def test_a_whole_comparison(whole_comparison, whole):
    out, runs, settings, _ = whole_comparison
    page = (out / "report.html").read_text()
    for title in ("Pairs with the largest disagreement", "Which factors do these pairs share?",
                  "Regression of pair similarity on shared attributes",
                  "Sensitivity to perturbations", "Which part of the images do they find alike?",
                  "Nearest neighbors", "Data and encoders"): assert title in page
    assert ('href="atlas.html"' in page and (out / "atlas.html").stat().st_size < 15e6
            and "src=\"http" not in page)
    tables = {p.parent.name + "/" + p.name: pd.read_csv(p) for part in _STAGES
              for p in (out / part).glob("*.csv") if p.stat().st_size > 2}
    assert (set(tables["attributes/attribution.csv"].encoder)
            >= {"CLIP", "DINO", "random ViT", "raw pixels", "CLIP − DINO"})
    assert (set(tables["perturbations/sensitivity.csv"].encoder)
            >= {"CLIP", "DINO", "random ViT", "raw pixels"})
    cards = [json.loads(file.read_text()) for file in out.glob("vectors/*/card.json")]
    first, = (card for card in cards if card["name"] == "random ViT")
    begun = load(f"random:{settings.control.seed}", settings.control).card
    assert first["revision"] == begun.revision # the very weights that both began with

def test_the_maps_are_a_table_for_other_tools(whole_comparison):
    out, *_ = whole_comparison
    table = pd.read_parquet(out / "atlas.parquet")
    for side in "ab":
        assert np.allclose(table[[f"x_{side}", f"y_{side}"]], np.load(out / f"maps/map-{side}.npy"))
        near = np.load(out / f"neighbors/neighbors-{side}.npy")
        ids = np.array([entry["ids"] for entry in table[f"neighbors_{side}"]])
        assert ids.shape == near.shape and (ids == near).mean() > 0.98 # ties aside
        apart = np.array([entry["distances"] for entry in table[f"neighbors_{side}"]])
        assert (np.diff(apart, axis=1) >= -1e-6).all() and apart.min() > -1e-6 # nearest first
    assert Image.open(io.BytesIO(table.image[0]["bytes"])).size == (96, 96)
    assert table.item_id.is_unique

def test_again_nothing_is_done(whole_comparison):
    out, runs, settings, beside = whole_comparison
    before = {p: p.stat().st_mtime_ns for p in out.rglob("manifest.json")}
    compare(*runs, "scenes", settings, out, **beside)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("manifest.json")} == before

def test_what_is_kept_has_these_columns(whole_comparison, tmp_path):
    out, _, settings, _ = whole_comparison
    export_comparison(out, tmp_path / "results", settings, "ccd compare")
    assert list(differences(tmp_path / "results", RESULTS / "comparison")) == []

def test_other_encoders_need_another_folder(whole_comparison):
    out, runs, settings, _ = whole_comparison
    with pytest.raises(UserError, match="holds a run with other settings"):
        compare(runs[0], runs[0], "scenes", settings, out)

def test_first_weights_are_of_one_control(whole, tmp_path):
    runs = [f"ccd:{whole / 'train' / r}" for r in ("clip-0", "dino-0")]
    assert shared_init_spec(*runs) and not shared_init_spec(runs[0], "pixels:16")
    other = tmp_path / "other"; shutil.copytree(whole / "train/dino-0", other)
    about = json.loads((other / "encoder.json").read_text()); about["control"]["seed"] = 5
    (other / "encoder.json").write_text(json.dumps(about))
    assert not shared_init_spec(runs[0], f"ccd:{other}")

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Forty pictures, two of them the same, one a copy saved again."
    home, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(38):
        small = rng.integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(small).resize((70, 50),
                                      Image.Resampling.BICUBIC).save(home / f"p{k:02d}.png")
    shutil.copy(home / "p00.png", home / "twin.png")
    Image.open(home / "p01.png").save(home / "again.jpg", quality=95)
    return home

def test_a_folder_without_labels(folder, tmp_path):
    out = tmp_path / "out"
    main(["compare", "pixels:8", "colors:4", *OPTIONS, "--images", str(folder), "--out", str(out),
          "--baselines", "--analysis.changed", "12"])
    assert "have a small distance in" in said(out) or "more sensitive to" in said(out)
    copies = pd.read_csv(out / "pairs/copies.csv")
    assert ({"p00.png", "twin.png"} <= set(copies.item_id)
            and len(set(copies[copies.item_id.isin(["p01.png", "again.jpg"])].group)) == 1)
    p = pd.read_csv(out / "pairs/pairs.csv")
    assert not ((p.item_id_i == "p00.png") & (p.item_id_j == "twin.png")).any()

@pytest.fixture(scope="module")
def local_models(tmp_path_factory):
    "Two networks as Hugging Face saves them, each with its own preprocessing."
    import torch, transformers as hf
    home, body = (tmp_path_factory.mktemp("models"),
                  dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=2))
    torch.manual_seed(0)
    for name, model, size in (("vit",
                               hf.ViTModel(hf.ViTConfig(**body, image_size=32, patch_size=8)), 32),
                              ("dinov2",
                               hf.Dinov2Model(hf.Dinov2Config(**body, image_size=42,
                                                              patch_size=14)), 42)):
        model.save_pretrained(home / name)
        hf.CLIPImageProcessorPil(size=dict(shortest_edge=size + 6),
                                 crop_size=size).save_pretrained(home / name)
    return home

def test_two_local_models_on_a_folder(local_models, folder, tmp_path):
    a, b, out = (f"hf:{local_models / 'vit'}", f"hf:{local_models / 'dinov2'}#feature=pooled",
                 tmp_path / "out")
    main(["compare", a, b, *OPTIONS, "--images", str(folder), "--out", str(out),
          "--analysis.perturbed_images", "8", "--skip", "maps"])
    cards = [json.loads((out / f"vectors/{k}/card.json").read_text()) for k in "ab"]
    assert [c["tap"] for c in cards] == ["cls", "pooled"] and [c["size"] for c in cards] == [32, 42]
    import torch
    from transformers import CLIPImageProcessorPil, ViTModel
    model, how = (k.from_pretrained(local_models / "vit")
                  for k in (ViTModel, CLIPImageProcessorPil))
    with torch.no_grad():
        want = model(**how(Image.open(folder / "p07.png").convert("RGB"),
                           return_tensors="pt")).last_hidden_state[0, 0]
    items = pd.read_parquet(out / "vectors/a/items.parquet").item_id.tolist()
    assert np.allclose(np.load(out / "vectors/a/vectors.npy")[items.index("p07.png")], want,
                       atol=2e-3)
    assert ((out / "perturbations/sensitivity.csv").exists()
            and len(pd.read_csv(out / "pairs/pairs.csv")))

def test_an_encoder_against_itself(folder, tmp_path):
    out = tmp_path / "out"
    main(["compare", "pixels:8", "pixels:8", *OPTIONS, "--images", str(folder), "--out", str(out),
          "--baselines", "--skip", "perturbations"])
    assert ("100.0 %" in said(out) and "all scores are 0" in said(out)
            and (out / "atlas.html").exists())

def test_stages_of_version_0_0_1_keep_their_results(folder, tmp_path):
    out = tmp_path / "out"
    given = ["compare", "pixels:8", "pixels:4", *OPTIONS, "--images", str(folder), "--out",
             str(out), "--baselines", "--skip"]
    main([*given, "interventions", "maps"]) # an old name of a stage is read too
    made = out / "attributes/lift.csv"
    before = made.stat().st_mtime_ns
    (out / "attributes").rename(out / "factors")
    main([*given, "perturbations", "maps"])
    assert made.stat().st_mtime_ns == before and not (out / "factors").exists()

def own_vectors(home, name, ids, d, seed, **columns):
    np.save(home / f"{name}.npy",
            np.random.default_rng(seed).normal(size=(len(ids), d)).astype(np.float32))
    pd.DataFrame(dict(item_id=ids) | columns).to_csv(home / f"{name}.csv", index=False)
    return f"npy:{home / name}.npy"

def test_vectors_from_elsewhere_on_common_items(tmp_path, capsys):
    ids = [f"x{k}" for k in range(60)]
    a = own_vectors(tmp_path, "mine", ids, 16, 0, category=["cat", "dog"] * 30)
    b = own_vectors(tmp_path, "yours", ids[:55][::-1] + ["only here"], 24, 1)
    with pytest.warns(UserWarning, match="6 items are not in all"):
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    assert (len(pd.read_csv(tmp_path / "out/left_out.csv")) == 6
            and "mine and yours share" in said(tmp_path / "out"))
    assert ("there are only vectors" in capsys.readouterr().err
            and not (tmp_path / "out/atlas.html").exists())

def test_vectors_from_elsewhere_beside_an_encoder(folder, tmp_path):
    ids = sorted(p.name for p in folder.iterdir())
    a = own_vectors(tmp_path, "mine", ids, 16, 0)
    main(["compare", a, "pixels:8", *OPTIONS, "--images", str(folder), "--out",
          str(tmp_path / "out"), *FAST])
    assert "Similar for mine, dissimilar for pixels" in (
        tmp_path / "out/report.html").read_text().replace("raw ", "")

def test_vectors_from_elsewhere_with_their_pictures(folder, tmp_path, capsys):
    ids = sorted(p.name for p in folder.iterdir())
    a, b = (own_vectors(tmp_path, n, ids, 16, k) for k, n in enumerate(("mine", "yours")))
    main(["compare", a, b, *OPTIONS, "--images", str(folder), "--out", str(tmp_path / "out"),
          "--skip", "maps"])
    assert ((tmp_path / "out/attributes/attribution.csv").exists()
            and "nearest neighbors" in (tmp_path / "out/report.html").read_text())
    c, d = (own_vectors(tmp_path, n, [*ids, "gone.png"], 16, k) for k, n in enumerate("cd"))
    with pytest.raises(SystemExit):
        main(["compare", c, d, *OPTIONS, "--images", str(folder), "--baselines", "--out",
              str(tmp_path / "gone")])
    assert "no image of 1 items, such as 'gone.png'" in capsys.readouterr().err

def test_folders_within_a_folder_are_categories(folder, tmp_path):
    for k, p in enumerate(sorted(folder.iterdir())):
        (tmp_path / "sorted" / "xyz"[k % 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sorted" / "xyz"[k % 3] / p.name).write_bytes(p.read_bytes())
    main(["compare", "pixels:8", "colors:3", *OPTIONS, "--images", str(tmp_path / "sorted"),
          "--out", str(tmp_path / "out"), *FAST])
    assert set(pd.read_csv(tmp_path / "out/neighbors/purity.csv").label) == {"category"}
    assert set(pd.read_csv(tmp_path / "out/pairs/agreement.csv").factor) == {"category"}

def test_labels_of_a_table_are_kept_beside_an_encoder(folder, tmp_path):
    ids = sorted(p.name for p in folder.iterdir())
    a = own_vectors(tmp_path, "mine", ids, 16, 0,
                    category=["cat", "dog"] * (len(ids) // 2) + ["cat"] * (len(ids) % 2))
    main(["compare", a, "pixels:8", *OPTIONS, "--images", str(folder), "--out",
          str(tmp_path / "out"), *FAST])
    assert set(pd.read_csv(tmp_path / "out/neighbors/purity.csv").label) == {"category"}

def test_a_misspelt_encoder_is_told_before_pictures_are_opened(folder, tmp_path, capsys,
                                                               monkeypatch):
    from ccd.data import corpora
    monkeypatch.setattr(corpora, "load_folder", lambda _: pytest.fail("opened"))
    for wrong, says in (("ccd:emoji/clipp", "no release of 'emoji/clipp'"), ("clip", "clip")):
        with pytest.raises(SystemExit):
            main(["compare", wrong, "pixels:8", *OPTIONS, "--images", str(folder), "--out",
                  str(tmp_path / "out")])
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()

def test_labels_that_contradict_are_told(tmp_path):
    ids = [f"x{k}" for k in range(30)]
    labels = np.array(["cat", "dog", "1", None] * 8, object)[:30]
    other = labels.copy(); other[[4, 9]] = "bird"; other[3] = "cat"
    a = own_vectors(tmp_path, "mine", ids, 8, 0, category=labels, style=[1.0, None, 2.0] * 10)
    b = own_vectors(tmp_path, "yours", ids, 8, 1, category=other, style=[1.0, None, 2.0] * 10)
    with pytest.warns(UserWarning) as told:
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out"), *FAST])
    said, = [str(w.message) for w in told if "differ between" in str(w.message)]
    for what in ("category of 3 of 30 items", "mine", "yours",
                 "x3: None and 'cat'; x4: 'cat' and 'bird'; x9: 'dog' and 'bird'",
                 "the values of mine are used"):
        assert what in said
    assert "ategory of 3 of 30 items" in (tmp_path / "out/report.html").read_text()

def words_of(page): # what a browser would show, and how often each tag occurs
    from html.parser import HTMLParser
    class Reader(HTMLParser):
        def __init__(self): super().__init__(); self.tags, self.words = [], []
        def handle_starttag(self, tag, attrs): self.tags.append(tag)
        def handle_data(self, data): self.words.append(data)
    r = Reader(); r.feed(page); r.close()
    return " ".join("".join(r.words).split()), {t: r.tags.count(t) for t in set(r.tags)}

NAMES = ["<b>x<b>", "<script>alert(1)<", "a&lt;b & 'c' \"d\"", "$x_{1$ \\frac", "NA", "01",
         "_under", "x − y", "{{ 7 * 7 }}", "日本 é"]

@pytest.mark.parametrize("k", range(0, len(NAMES), 2))
def test_any_name_label_and_id_is_shown_as_it_is(tmp_path, k):
    a, b = NAMES[k:k + 2]
    ids = [f"{NAMES[n % len(NAMES)]}{n}" for n in range(40)]
    paths = [own_vectors(tmp_path, n, ids, 8, s) for s, n in enumerate((a, b))]
    for n in (a, b):
        pd.DataFrame(dict(item_id=ids, category=[b, a] * 20)).to_parquet(tmp_path / f"{n}.parquet")
    main(["compare", *paths, *OPTIONS, "--out", str(tmp_path / "out"), *FAST])
    words, tags = words_of((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    for text in (f"Similar for {a}, dissimilar for {b}", f"On 40 images {a} and {b} share"):
        assert " ".join(text.split()) in words
    assert (set(tags)
            <= set("html meta title style h1 h2 h3 p div table thead tbody tr th td img details "
                   "summary code ul li".split()))
    pairs = pd.read_csv(tmp_path / "out/pairs/pairs.csv", dtype=str, keep_default_na=False)
    assert (len(pairs) and {*pairs.item_id_i, *pairs.item_id_j} <= set(ids)
            and pairs.item_id_i[0] in words)
    purity = pd.read_csv(tmp_path / "out/neighbors/purity.csv", dtype=str, keep_default_na=False)
    assert purity.encoder.tolist() == [a, b]

@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]),
               max_size=30).filter(str.strip))
def test_any_word_stays_a_word_in_a_report(word):
    from ccd.report import tables as report_tables
    with tempfile.TemporaryDirectory() as room:
        plain = dict(text=word, note=word, title=word)
        report_tables.write_report(Path(room) / "x.html", word, word,
                                   [plain
                                    | dict(body=report_tables.table_tag(pd.DataFrame({word: [word]},
                                                                                     index=[word])))])
        words, tags = words_of((Path(room) / "x.html").read_text(encoding="utf-8"))
    assert (words.count(" ".join(word.split())) >= 8
            and set(tags)
            <= set("html meta title style h1 h2 p div table thead tbody tr th td".split()))

def test_vectors_and_items_called_by_numbers_and_a_row_of_nan(tmp_path):
    ids = ["NA", "None", "nan", "01", "1", "1.0", *(f"x{k}" for k in range(24))]
    a, b = (own_vectors(tmp_path, n, ids, 8, k, category=["NA", "01", "1"] * 10)
            for k, n in enumerate(("1", "01#feature=x")))
    x = np.load(tmp_path / "1.npy"); x[5] = np.nan; np.save(tmp_path / "1.npy", x)
    with pytest.warns(UserWarning, match="1 of 30 vectors"):
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    lost = load_table(tmp_path / "out/left_out.csv")
    assert lost.item_id.tolist() == ["1.0"] and lost.reason[0] == "NaN or infinity in its vector"
    assert "On 29 images 1 and 01#feature=x share" in said(tmp_path / "out")
    assert set(load_table(tmp_path / "out/neighbors/purity.csv").encoder) == {"1", "01#feature=x"}

@pytest.mark.parametrize("change, says", [
    (lambda x: x.__setitem__(slice(None), np.nan), "no vector that can be used"),
    (lambda x: x.__setitem__(slice(None), 1), "same vector"),
    (lambda x: x.__setitem__(slice(1, None), 1), "same vector"),
    (lambda x: x.__setitem__(slice(None), 1 + 1e-7 * x), "same vector")])
def test_bad_vectors_are_refused(tmp_path, capsys, change, says):
    ids = [f"x{k}" for k in range(20)]
    a, b = own_vectors(tmp_path, "a", ids, 8, 0), own_vectors(tmp_path, "b", ids, 8, 1)
    x = np.load(tmp_path / "b.npy"); change(x); np.save(tmp_path / "b.npy", x)
    with pytest.raises(SystemExit):
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    assert says in capsys.readouterr().err

def test_nothing_in_common_and_too_little(tmp_path, capsys):
    a, b = (own_vectors(tmp_path, "a", list("pqrs"), 8, 0),
            own_vectors(tmp_path, "b", list("tuvw"), 8, 1))
    with pytest.raises(SystemExit):
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    assert "no item is in both" in capsys.readouterr().err
    for n in (1, 2):
        c, d = (own_vectors(tmp_path, f"{s}{n}", list("pq")[:n], 8, k) for k, s in enumerate("cd"))
        with pytest.raises(SystemExit):
            main(["compare", c, d, *OPTIONS, "--out", str(tmp_path / f"few{n}")])
        assert "three or more" in capsys.readouterr().err

@pytest.mark.parametrize("n", [3, 6])
def test_a_handful_of_pictures(tmp_path, n):
    a, b = (own_vectors(tmp_path, s, [f"x{k}" for k in range(n)], 8, k) for k, s in enumerate("ab"))
    main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    assert ((tmp_path / "out/report.html").exists()
            and "CKA was not computed: it needs 20" in said(tmp_path / "out"))

def test_different_vectors_are_not_called_the_same(tmp_path, capsys):
    a, b = (own_vectors(tmp_path, s, list("pqrstu"), 6, k) for k, s in enumerate("ab"))
    np.save(tmp_path / "b.npy", np.eye(6))
    with pytest.raises(SystemExit):
        main(["compare", a, b, *OPTIONS, "--out", str(tmp_path / "out")])
    assert "to b all pairs of the 6 items are equally alike" in capsys.readouterr().err

def test_an_unknown_part(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "pixels:8", "pixels:4", *OPTIONS, "--skip", "tables", "--out",
              str(tmp_path / "out")])
    assert "unknown part 'tables'" in capsys.readouterr().err and not (tmp_path / "out").exists()

def test_every_part_that_may_be_left_out_is(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "pixels:8", "pixels:4", *OPTIONS, "--skip", "pairs", "--out",
              str(tmp_path / "out")])
    assert "unknown part 'pairs'" in capsys.readouterr().err

@pytest.mark.parametrize("names",
                         [("CLIP", "vit"), ("vit", "CLIP"), ("CLIP (A)", "CLIP (B)"),
                          ("CLIP", "DINO")])
def test_colours_are_lent(names):
    from ccd.report import style
    before = dict(style._COLORS)
    with style.distinct_colors(names): assert style.color_of(names[0]) != style.color_of(names[1])
    assert style._COLORS == before

def test_killed_in_the_middle(folder, tmp_path):
    import signal
    args = ["compare", "pixels:8", "colors:4", *OPTIONS, "--images", folder, "--baselines",
            "--skip", "perturbations", "maps", "--out"]
    text, code = finish(start(*args, tmp_path / "calm"))
    assert code == 0, text
    for part in ("neighbors", "pairs", "attributes"):
        signal_when(start(*args, tmp_path / "killed"),
                    lambda: any((tmp_path / "killed").glob(f".{part}.tmp-*")), signal.SIGKILL,
                    group=True)
    text, code = finish(start(*args, tmp_path / "killed"))
    assert code == 0, text
    def tables(out):
        return {p.relative_to(out): file_hash(p)
                for p in out.rglob("*.csv") if ".tmp" not in str(p)}
    assert (tables(tmp_path / "killed") == tables(tmp_path / "calm")
            and not list((tmp_path / "killed").glob(".*.tmp-*")))
