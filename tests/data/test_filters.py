"""Filters by text: the kept and the left out are the whole, a kill loses nothing, and a score is
what its source says it is."""
import io, json, linecache, sys, tarfile
from dataclasses import replace
import numpy as np, pandas as pd, pytest, tiny_llava, torch
from PIL import Image
from ccd.data import filters
from ccd.vqa import text_scorers
from ccd.cli import main
from ccd.files import UserError
from ccd.settings import Control, DataSettings
from ccd.runs import read_manifest
from ccd.data.filters import _ocr_scores, function_scorer, score
from ccd.vqa.text_scorers import get_scorer
from ccd.data.corpora import _parse_filter_rule, fingerprint, open_corpus
from ccd.data.batches import BatchLoader, _tar_lengths

pytestmark = pytest.mark.filterwarnings("ignore:.*set aside")

def red(x):
    return dict(light=float(x[..., 0].mean()) / 255, heavy=float(x[0, 0, 1]) / 255,
                seen=int(x.size))

@pytest.fixture
def photos(tmp_path):
    "Forty plain pictures of any shape, brighter and brighter, and their scores by `red`."
    home = tmp_path / "photos"
    home.mkdir()
    for k in range(40):
        Image.new("RGB", (20 + k, 30), (6 * k, 255 - 6 * k, 0)).save(home / f"{k:02d}.png")
    return DataSettings(source=f"folder:{home}")

def source(out, keep): return DataSettings(source=f"filter:{keep}:{out}")

def ids(world, split="train"): return open_corpus(world, split).corpus["item_id"][:]

# --- what a scorer gives

@pytest.mark.parametrize("gives, why",
                         [(float("nan"), "light = nan"), (float("inf"), "light = inf"),
                          ("yes", "light = 'yes'"),
                                        ("0.5", "light = '0.5'"), ([1, 2], r"light = \[1, 2\]"),
                          (None, "neither light nor heavy")])
def test_what_is_no_score_is_told(photos, tmp_path, gives, why):
    s = filters.Scorer(dict(name="odd", cuts=dict(light=0.5, heavy=0.5)),
                       lambda xs: [dict(light=gives) for _ in xs])
    with pytest.raises(UserError, match=f"the scorer odd: .*not scored: it gave {why}"):
        score(photos, s, tmp_path / "s")
    def one(x): return dict(light=gives, heavy=0.1)
    if gives is not None:
        with pytest.raises(UserError, match=f"one: .*not scored: it gave {why}"):
            score(photos, function_scorer(one), tmp_path / "t")

@pytest.mark.parametrize("scores, why",
                         [([], "gave 0 scores for"), ([dict(light=0.5)] * 99, "gave 99 scores for"),
                                         ([0.5] * 16, "it gave 0.5, where a dict")])
def test_as_many_scores_as_pictures(photos, tmp_path, scores, why):
    s = filters.Scorer(dict(name="odd", cuts=dict(light=0.5, heavy=0.5)), lambda xs: scores)
    with pytest.raises(UserError, match=f"the scorer odd.*{why}"): score(photos, s, tmp_path / "s")

def test_numbers_of_any_kind_are_scores(photos, tmp_path):
    kinds = [1, True, np.float32(0.25), np.array(0.5), torch.tensor(0.75)]
    s = filters.Scorer(dict(name="kinds", cuts=dict(light=0.5, heavy=0.5)),
                       lambda xs: [dict(light=kinds[k % 5]) for k in range(len(xs))], batch=5)
    t = pd.read_parquet(score(photos, s, tmp_path / "s") / "scores.parquet")
    assert t.light[:5].tolist() == [1, 1, 0.25, 0.5, 0.75] and (t.fault == "").all()

def test_other_files_are_no_unreadable_pictures(photos, tmp_path):
    home = tmp_path / "photos"
    (home / "notes.md").write_text("no picture"); (home / "text.jpg").write_text("broken")
    folder = score(photos, function_scorer(red), tmp_path / "s")
    assert (set(pd.read_csv(folder / "summary.csv").unreadable) == {1}
            and len(pd.read_csv(folder / "unreadable.csv")) == 2)

# --- what is kept

@pytest.mark.parametrize("keep", ["light", "heavy", "light@0.2", "heavy@0.77"])
def test_kept_and_left_out_are_the_whole(photos, tmp_path, keep):
    score(photos, function_scorer(red), tmp_path / "s")
    whole = open_corpus(photos).corpus
    kept, rest = ids(source(tmp_path / "s", keep)), ids(source(tmp_path / "s", f"not-{keep}"))
    name, _, cut = keep.partition("@")
    want = [i
            for i, im in zip(whole["item_id"][:], whole["image"][:])
            if red(np.asarray(im))[name] > float(cut or 0.5)]
    assert kept == want and 0 < len(want) < len(whole)
    assert sorted(kept + rest) == sorted(whole["item_id"][:]) and not set(kept) & set(rest)
    prints = {fingerprint(open_corpus(w).corpus)
              for w in (photos, source(tmp_path / "s", keep),
                        source(tmp_path / "s", f"not-{keep}"))}
    assert len(prints) == 3

def test_training_takes_it(photos, tmp_path):
    score(photos, function_scorer(red), tmp_path / "s")
    c = open_corpus(source(tmp_path / "s", "light")).corpus
    shown = BatchLoader(c, Control(samples=80, batch_size=len(c)), 16)(0).images
    assert (shown[:, 0].float().mean((1, 2)) > 127).all() and len(shown) == len(c)

def test_filters_may_stand_on_filters(photos, tmp_path):
    score(photos, function_scorer(red), tmp_path / "a")
    score(source(tmp_path / "a", "light@0.2"), function_scorer(red), tmp_path / "b")
    both = ids(source(tmp_path / "b", "not-light@0.6"))
    assert (both
            == [i
                for i in ids(source(tmp_path / "a", "light@0.2"))
                if i in ids(source(tmp_path / "a", "not-light@0.6"))])

def test_summary_counts_what_is_kept(photos, tmp_path):
    folder = score(photos, function_scorer(red), tmp_path / "s")
    t = pd.read_csv(folder / "summary.csv").set_index("rule")
    for rule in ("light", "heavy"):
        assert (t.kept[rule] == len(ids(source(tmp_path / "s", rule)))
                and t.kept[rule] + t.excluded[rule] == len(ids(photos)))
    assert f"light above 0.5: {t.kept['light']} kept" in filters.format_filter_summary(folder)
    # what else a scorer says is kept
    assert (pd.read_parquet(folder / "scores.parquet").seen > 0).all()

def test_another_split_has_scores_of_its_own(photos, tmp_path):
    score(photos, function_scorer(red), tmp_path / "s")
    with pytest.raises(UserError, match="no finished scores of test images.*--split test"):
        ids(source(tmp_path / "s", "light"), "test")
    score(photos, function_scorer(red), tmp_path / "s", "test")
    assert set(ids(source(tmp_path / "s", "light@-1"), "test")) == set(ids(photos, "test"))

# --- kills, changes, faults

def counted(world, at=None):
    "A scorer that stops after so many pictures, and what it has seen."
    seen = []
    def stopping(pictures):
        if at is not None and len(seen) >= at: raise KeyboardInterrupt
        seen.extend(pictures)
        return [red(x) for x in pictures]
    return (filters.Scorer(dict(name="red", cuts=dict(light=0.5, heavy=0.5)), stopping, batch=4),
            seen)

def test_a_kill_loses_at_most_a_part(photos, tmp_path):
    n = len(ids(photos))
    want = pd.read_parquet(score(photos, counted(photos)[0], tmp_path / "whole") / "scores.parquet")
    again = 0
    for at in (8, 12, 0, 4):
        stopping, seen = counted(photos, at)
        with pytest.raises(KeyboardInterrupt): score(photos, stopping, tmp_path / "s", flush=-1)
        again += len(seen)
        assert not (tmp_path / "s/train").exists()
        with pytest.raises(UserError, match="no finished scores"):
            ids(source(tmp_path / "s", "light"))
    last, seen = counted(photos)
    folder = score(photos, last, tmp_path / "s")
    assert again == 24 and len(seen) == n - 24
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "scores.parquet"), want)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["train"]
    seen.clear()
    assert score(photos, last, tmp_path / "s") == folder and not seen

def test_other_scores_are_not_overwritten(photos, tmp_path):
    folder = score(photos, function_scorer(red), tmp_path / "s")
    before = read_manifest(folder)
    with pytest.raises(UserError,
                       match=r"other scores: scorer.cuts.light was 0.5, is now 0.6.*--out"):
        score(photos, function_scorer(red, light=0.6), tmp_path / "s")
    assert read_manifest(folder) == before
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="did not make"):
        score(photos, function_scorer(red), tmp_path / "mine")

def test_scores_of_other_pictures_are_refused(photos, tmp_path, tiny):
    score(photos, function_scorer(red), tmp_path / "s")
    (tmp_path / "photos/05.png").unlink()
    with pytest.raises(UserError, match="its images have changed.*Score it again"):
        ids(source(tmp_path / "s", "light"))
    score(tiny.data, function_scorer(red), tmp_path / "e")
    with pytest.raises(UserError, match="data.scenes was 512, is now 500"):
        ids(replace(tiny.data, scenes=500, source=f"filter:light:{tmp_path / 'e'}"))

def write_tar(path, files):
    with tarfile.open(path, "w") as t:
        for name, data in files.items():
            head = tarfile.TarInfo(name); head.size = len(data)
            t.addfile(head, io.BytesIO(data))

def shards_of(home, broken=()):
    home.mkdir()
    for k in range(4):
        files = {}
        for i in range(10 * k, 10 * k + 10):
            out = io.BytesIO(); Image.new("RGB", (9, 9), (6 * i, 0, 0)).save(out, "PNG")
            files[f"{i:03d}.png"] = out.getvalue()[:50] if i in broken else out.getvalue()
        write_tar(home / f"{k}.tar", files)
    return DataSettings(source=f"shards:{home}")

def test_unreadable_pictures_are_counted_and_in_neither_part(tmp_path):
    w = shards_of(tmp_path / "tars", broken=(3, 14, 35))
    n = len(ids(w))
    folder = score(w, function_scorer(red), tmp_path / "s")
    lost = pd.read_csv(folder / "unreadable.csv")
    bad = {f"{i // 10}/{i:03d}" for i in (3, 14, 35)} & set(ids(w))
    assert set(lost.file) == bad and bad and lost.reason.str.len().min() > 5
    assert ((pd.read_csv(folder / "summary.csv").unreadable == len(bad)).all()
            and f"{len(bad)} could not be scored" in filters.format_filter_summary(folder))
    parts = [open_corpus(source(tmp_path / "s", k)) for k in ("light", "not-light")]
    assert (sum(len(p.corpus) for p in parts) == n - len(bad)
            and not bad & {i for p in parts for i in p.corpus["item_id"][:]})
    assert all(set(p.skipped.file) == bad for p in parts)
    assert sum(_tar_lengths(parts[0].corpus)) == len(parts[0].corpus)

def test_too_many_unreadable_pictures_end_it(tmp_path):
    w = shards_of(tmp_path / "tars", broken=range(1, 30))
    for _ in "ab": # nor does a second try seal them
        with pytest.raises(UserError,
                           match=r"cannot be scored, and at most 1.00% of \d+ are "
                                 r"allowed.*--max-faults"):
            score(w, function_scorer(red), tmp_path / "s")
    assert score(w, function_scorer(red), tmp_path / "s", max_faults=0.5).exists()

def test_a_picture_that_breaks_the_scorer_is_a_fault(photos, tmp_path):
    def picky(x):
        if x.shape[1] == 25: raise ZeroDivisionError("no width")
        return red(x)
    folder = score(photos, function_scorer(picky), tmp_path / "s")
    lost = pd.read_csv(folder / "unreadable.csv")
    assert (list(lost.file) == ["05.png"]
            and lost.reason[0] == "not scored: ZeroDivisionError: no width")

def test_what_was_set_aside_at_opening_is_listed_too(photos, tmp_path):
    (tmp_path / "photos/text.jpg").write_text("no picture")
    folder = score(photos, function_scorer(red), tmp_path / "s")
    assert (list(pd.read_csv(folder / "unreadable.csv").file) == ["text.jpg"]
            and (pd.read_csv(folder / "summary.csv").unreadable == 1).all())
    assert list(open_corpus(source(tmp_path / "s", "light")).skipped.file) == ["text.jpg"]

def test_a_function_that_says_nothing(photos, tmp_path):
    def mute(x): return dict(dark=1.0)
    with pytest.raises(UserError, match="neither light nor heavy in {'dark': 1.0}"):
        score(photos, function_scorer(mute), tmp_path / "s")

def test_a_stream_is_refused(tmp_path):
    shards_of(tmp_path / "tars")
    with pytest.raises(UserError, match="never held.*shards:"):
        score(DataSettings(source=f"stream:{tmp_path / 'tars'}"), function_scorer(red),
              tmp_path / "s")

# --- names

@pytest.mark.parametrize("keep", ["dark", "light@much", "not-", "light@", ""])
def test_unknown_rules(keep):
    with pytest.raises(UserError, match="unknown filter"): _parse_filter_rule(keep)

def test_unknown_scorers(monkeypatch, tmp_path):
    for name in ("eyes", "vlm:", "python:"):
        with pytest.raises(UserError, match="unknown scorer.*vlm:NAME"): get_scorer(name)
    for name in ("python:no.such", "python:json.nothing", "python:alone"):
        with pytest.raises(UserError, match="there is no function"): get_scorer(name)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ocr\]'"): get_scorer("ocr")

def test_a_function_by_name(monkeypatch, tmp_path, photos, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scorer.py").write_text("def redness(x): return dict(light=float(x[..., "
                                           "0].mean()) / 255)\n")
    s = get_scorer("python:my_scorer.redness")
    folder = score(photos, s, tmp_path / "s")
    assert (list(pd.read_csv(folder / "summary.csv").rule) == ["light"]
            and s.card["name"] == "my_scorer.redness")
    for keep in ("heavy", "not-heavy@0.3"):
        with pytest.raises(UserError, match="heavy.* keeps none of"):
            ids(source(tmp_path / "s", keep))
    with pytest.raises(UserError, match="needs a name, and thresholds"):
        filters.Scorer(dict(name="a", cuts=dict(light=0)), None)
    main(["filter", photos.source, "--scorer", "python:my_scorer.redness", "--out",
          str(tmp_path / "c")])
    assert f"--data.source filter:light:{tmp_path / 'c'}" in capsys.readouterr().out
    assert pd.read_parquet(
        tmp_path / "c/train/scores.parquet").equals(pd.read_parquet(folder / "scores.parquet"))

def test_a_function_without_a_source_is_refused(monkeypatch):
    """Python 3.13 keeps the program of `python -c`, by which workers are started, under the name of
    all that is evaluated."""
    monkeypatch.setitem(linecache.cache, "<string>", (7, None, ["import sys\n"], "<string>"))
    with pytest.raises(UserError, match="source code of .* cannot be read"):
        function_scorer(eval("lambda x: {}"))

# --- the reader and the model

def test_lines_of_a_reader():
    def box(w, h):
        return [(0, 0), (w, 0), (w, h), (0, h)]
    def line(text, sure, w=10, h=10):
        return (box(w, h), text, sure)
    # one letter, no letter
    assert _ocr_scores([line("a", 1.0), line("?!", 1.0)], 1000)["light"] == 0
    assert _ocr_scores([line("ab", 0.3)], 1000) == dict(light=0.3, heavy=0.0, lines=0, text="")
    assert _ocr_scores([line("ab", 0.9, 50, 10)], 1000)["heavy"] == 0 # a single line is a sign
    t = _ocr_scores([line("ab", 0.9, 50, 10), line("7 kg", 0.6, 20, 10), line("no", 0.4, 50, 10)],
                    1000)
    assert t["heavy"] == pytest.approx(0.7) and t["lines"] == 2 and t["text"] == "ab | 7 kg"
    tilted = [(10, 0), (20, 10), (10, 20), (0, 10)]
    assert (_ocr_scores([(tilted, "ab", 0.9), (tilted, "cd", 0.9)], 1000)["heavy"]
            == pytest.approx(0.4))
    assert _ocr_scores([line("ab", 0.9, 99, 99)] * 2, 1000)["heavy"] == 1.0

def test_the_reader_itself(tmp_path):
    pytest.importorskip("rapidocr")
    from PIL import ImageDraw
    im = Image.new("RGB", (200, 80), "white")
    ImageDraw.Draw(im).text((20, 20), "HELLO", "black", font_size=36)
    read, blank = get_scorer("ocr").score([np.asarray(im), np.full((80, 200, 3), 255, np.uint8)])
    assert (read["light"] > 0.9 and "HELLO" in read["text"].upper()
            and blank["light"] == blank["heavy"] == 0)

def test_a_model_is_asked_as_transformers_would(tmp_path):
    "The share of yes among four answers, each scored alone by transformers' own LLaVA."
    from ccd.vqa.llava import conversations, settings, training
    net, tok = tiny_llava.saved(tmp_path / "m",
                                [*text_scorers._FILTER_PROMPTS.values(), "yes no Yes No"] * 3, 320,
                                400)
    s = get_scorer(f"vlm:{tmp_path / 'm'}")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(3)]
    got = s.score(pictures)
    e = training.published_vlm(str(tmp_path / "m")).encoder
    mean, std = (torch.tensor(x)[:, None, None] for x in (e.card.mean, e.card.std))
    pixels = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - mean) / std
    eos = tok.eos_token
    for k, question in text_scorers._FILTER_PROMPTS.items():
        start = (f"{tok.bos_token}{settings._SYSTEM} USER: "
                 f"{conversations._IMAGE_TOKEN * 16}\n{question} ASSISTANT:")
        for x, one in zip(pixels, got):
            p = []
            for a in ("Yes", "yes", "No", "no"):
                before, ids_ = (tok(t, add_special_tokens=False, return_tensors="pt").input_ids
                                for t in (start, f"{start} {a}{eos}"))
                with torch.no_grad():
                    logp = net(input_ids=ids_, pixel_values=x[None]).logits[0].log_softmax(-1)
                at = torch.arange(before.shape[1], ids_.shape[1])
                p.append(logp[at - 1, ids_[0, at]].sum().exp().item())
            assert one[k] == pytest.approx(sum(p[:2]) / sum(p), rel=1e-3)
    assert len({round(o["light"], 6) for o in got}) == 3 # it does look at the picture
    json.dumps(s.card)
