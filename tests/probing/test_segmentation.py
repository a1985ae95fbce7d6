"""Masks against a second way to make them; the head against scikit-learn; windows, scores and
intervals against their definitions."""
from dataclasses import replace
from itertools import product
import numpy as np, pytest, torch
from PIL import Image
from torch.nn import functional as F
from ccd.data.emoji import drawings, scenes as emoji_scenes
from ccd.probing import patches, segmentation
from ccd.files import UserError
from ccd.presets import preset
from ccd.encoders.base import Encoder, EncoderCard, Features
from ccd.encoders.loading import load
from ccd.probing.patches import (_IGNORE_INDEX, _Tokens, _class_counts, _crop_windows,
                                 _emoji_segments, _feature_grid, _from_mask_images, _last_layers,
                                 _patch_features, _patch_labels, _sliding_windows, _training_tokens,
                                 _window_offsets, pixel_patches)
from ccd.probing.segmentation import (Segmentation, _LinearHead, _fit_heads, _iou, _predict_mask,
                                      _stitch_windows, bootstrap_counts, majority_baseline, miou,
                                      _miou_difference, _miou_test, _segmentation_summary,
                                      per_class_iou, segmentation_probe)

pytestmark = pytest.mark.numeric

WORLD = preset("smoke").data

# --- masks

class Numbered:
    "The drawings with their alpha, all in one colour that is their number."
    def __init__(self, pixels): self.pixels = pixels
    def __getitem__(self, row):
        x = np.array(self.pixels[row])
        x[..., :3] = (row >> 16) & 255, (row >> 8) & 255, row & 255
        return x

def test_masks_are_of_the_very_scene(monkeypatch):
    """On black and on white ground a scene differs by 1 - alpha; on black its colour tells the
    drawing."""
    table, pixels = drawings.drawings()
    masks = {i: emoji_scenes.instance_mask(WORLD, "test", i) for i in range(60)}
    facts = {i: emoji_scenes.scene(WORLD, "test", i)[1] for i in masks}
    real = emoji_scenes.draw_background
    def on(level):
        def flat(rng, size, kind=None):
            canvas, said = real(rng, size, kind)
            return np.full_like(canvas, level), said
        monkeypatch.setattr(emoji_scenes, "draw_background", flat)
        return {i: emoji_scenes._DRAW[f["kind"]](*start(i), WORLD.size)[0]
                for i, f in facts.items() if f["kind"] in ("drawing", "group")}
    def start(i):
        rng = np.random.Generator(np.random.Philox(key=[WORLD.seed * 4 + 2, i]))
        rng.choice(list(emoji_scenes._SCENE_TYPES), p=list(emoji_scenes._SCENE_TYPES.values()))
        return rng, emoji_scenes.asset_pool("test", WORLD.held_out_style)
    monkeypatch.setattr(emoji_scenes, "drawings", lambda: (table, Numbered(pixels)))
    black, white = on(0.0), on(255.0)
    assert len(black) > 30
    for i in black:
        alpha = 1 - (white[i] - black[i])[..., 0] / 255
        assert ((masks[i] >= 0) == (alpha > 0.5)).all()
        inside = masks[i] >= 0
        color = np.rint(black[i][inside] / alpha[inside][:, None]).astype(int)
        assert (color @ [65536, 256, 1] == masks[i][inside]).all()
        assert table.concept[masks[i][inside]].isin([facts[i]["concept"],
                                                     facts[i].get("other_concept")]).all()

def test_scenes_without_drawings_are_covered_by_nothing():
    kinds = {i: emoji_scenes.scene(WORLD, "test", i)[1] for i in range(60)}
    for i, f in kinds.items():
        assert (emoji_scenes.instance_mask(WORLD, "test", i) >= 0).any() == bool(f.get("count"))

@pytest.fixture(scope="module")
def scenes():
    return [_emoji_segments(WORLD, s, n) for s, n in (("train", 120), ("val", 40), ("test", 60))]

def test_segments_are_scenes_of_drawings_with_their_category(scenes):
    train, _, test = scenes
    assert len(train.classes) == 10 and set(test.corpus["kind"][:]) == {"drawing", "group"}
    for k in range(len(test)):
        row, shown = test.corpus[k], {test.classes[c] for c in np.unique(test.mask(k))}
        assert {"ground", row["category"]} <= shown and (len(shown) == 2 or row["relation"])
        assert test.mask(k).shape == (64, 64)
    two = _emoji_segments(WORLD, "test", 60, label="drawing")
    assert two.classes == ["ground", "drawing"]
    assert all(((two.mask(k) == 1) == (test.mask(k) > 0)).all() for k in range(60))
    assert len(test.first(7)) == 7 and (test.first(7).cluster == test.cluster[:7]).all()

# --- windows

def test_windows_cover_everything_and_stay_inside():
    for length in range(48, 200):
        at = _window_offsets(length, 48)
        seen = np.zeros(length, bool)
        for a in at:
            assert 0 <= a <= length - 48
            seen[a:a + 48] = True
        assert seen.all() and len(set(at)) == len(at) and max(np.diff(at), default=0) <= 32

def test_a_picture_of_the_right_size_is_not_touched():
    x = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert (_crop_windows(x, _sliding_windows(x.shape, 48), 48)[0] == x).all()
    assert (_crop_windows(x, _sliding_windows(x.shape, 48, flip=True), 48)[0] == x[:, ::-1]).all()
    assert (_sliding_windows((100, 201), 50).frame == (50, 100)
            and _sliding_windows((100, 201), 50, 2).frame == (100, 201))

# --- tokens

def test_counts_of_patches_are_counts_of_pixels():
    m = np.random.default_rng(0).choice([0, 1, 2, _IGNORE_INDEX], (3, 12, 12)).astype(np.uint8)
    y = torch.from_numpy(_patch_labels(m, 2))
    for cells in (1, 2, 3, 6):
        got, q = _class_counts(y, 2, cells, 3), 6 // cells
        if cells == 1: got = got.view(3, 2, 2, 3).permute(0, 3, 1, 2)
        for k, i, j in np.ndindex(3, 2 * cells, 2 * cells):
            cell = m[k, q * i:q * i + q, q * j:q * j + q]
            assert got[k, :, i, j].tolist() == [(cell == c).sum() for c in range(3)]

def test_tokens_of_several_encoders_stand_side_by_side():
    x = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    layers = _last_layers("random:0", 3)
    both = _patch_features(layers, x)
    assert both.shape == (2, 36, 3 * 192)
    assert all(torch.equal(both[..., 192 * k:192 * k + 192], _patch_features([e], x))
               for k, e in enumerate(layers))
    assert [e.card.layer for e in layers] == ["last", "3 of 4", "2 of 4"]
    with pytest.raises(UserError, match="cannot stand side by side"):
        _feature_grid([load("random:0"), pixel_patches(48, 16)])
    with pytest.raises(UserError, match="has no patch tokens"): _feature_grid([load("pixels:16")])

def test_tokens_are_made_once(scenes, tmp_path, monkeypatch):
    train = scenes[0].first(30)
    e = load("random:0")
    a = _training_tokens(tmp_path / "t", [e], train)
    assert a.x.shape == (30 * 36, 192) and a.y.shape == (30 * 36, 64) and isinstance(a.x, np.memmap)
    first = np.concatenate([_crop_windows(np.array(train.corpus[k]["image"]),
                                          _sliding_windows((64, 64), 48), 48) for k in (0, 1)])
    assert np.allclose(a.x[:72], _patch_features([e], first).flatten(0, 1), atol=1e-2)
    monkeypatch.setattr(patches, "_patch_features", lambda *_: pytest.fail("made again"))
    assert np.array_equal(_training_tokens(tmp_path / "t", [e], train).x, a.x)
    monkeypatch.undo()
    few = _training_tokens(tmp_path / "few", [e], train, per_picture=5)
    assert few.x.shape == (150, 192) and not few.windows
    assert {x.tobytes() for x in few.x} <= {x.tobytes() for x in a.x}
    with pytest.raises(UserError, match="no neighbors.*cells=1"): _fit_heads(few, cells=2)
    with pytest.raises(UserError,
                       match="8 px cannot be split into 3 x 3 cells: expected one of 1, 2, 4, 8"):
        _fit_heads(a, cells=3)

def painted(n=12, shape=(64, 96), seed=0, label=lambda m: m, classes=("red", "green", "blue")):
    "Pictures of big squares whose colour is their class."
    from datasets import Dataset, Features as F_, Image as I_, Value
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        m = np.kron(rng.integers(0, len(classes), (shape[0] // 16, shape[1] // 16)),
                    np.ones((16, 16), int)).astype(np.uint8)
        rows.append(dict(item_id=f"p{seed}-{k}", pixel_hash=str(k), captions="", split="train",
                         image=Image.fromarray(np.eye(3, dtype=np.uint8)[m] * 255),
                         annotation=Image.fromarray(label(m).astype(np.uint8))))
    types = F_(image=I_(), annotation=I_(),
               **{c: Value("string") for c in ("item_id", "pixel_hash", "captions", "split")})
    return Dataset.from_list(rows, features=types)

RGB = ["red", "green", "blue"]

def test_what_cannot_be_learnt_from_is_said(tmp_path):
    blank = _from_mask_images(painted(label=lambda m: np.full_like(m, _IGNORE_INDEX)), RGB)
    with pytest.raises(UserError, match="no pixel of 12 images has a class"):
        _training_tokens(tmp_path / "a", [pixel_patches()], blank)
    big = Encoder(EncoderCard("big", "", "", "", size=48),
                  lambda x: Features(patches=x.new_full((len(x), 36, 4), 1e5)), taps=("patches",))
    with pytest.raises(UserError, match="float16 cannot hold"):
        _training_tokens(tmp_path / "b", [big], _from_mask_images(painted(), RGB))
    other = _from_mask_images(painted(label=lambda m: m[:, :64]), RGB)
    with pytest.raises(UserError, match="64 x 64 px and its image 96 x 64 px"):
        _training_tokens(tmp_path / "c", [pixel_patches()], other)
    assert not list(tmp_path.iterdir()) # no half folder

# --- ADE20k's labels

def test_the_zero_label_is_taken_off_once():
    odd = painted(2,
                  label=lambda m: np.where(np.arange(96) < 8, _IGNORE_INDEX,
                                           np.where(np.arange(96) < 16, 0, m + 1)))
    plain = _from_mask_images(painted(2), RGB)
    shifted = _from_mask_images(odd, RGB, reduce_zero_label=True)
    for k in (0, 1):
        m = shifted.mask(k)
        assert ((m[:, :16] == _IGNORE_INDEX).all() and (m[:, 16:] == plain.mask(k)[:, 16:]).all()
                and m.dtype == np.uint8)
    with pytest.raises(UserError, match="has the class 3.*reduce_zero_label"):
        [_from_mask_images(odd, RGB).mask(k) for k in (0, 1)]
    from datasets import Image as I_
    rgb = painted(1).remove_columns("annotation").add_column("x", [0]).remove_columns("x")
    rgb = rgb.map(lambda r: dict(annotation=r["image"])).cast_column("annotation", I_())
    with pytest.raises(UserError, match="expected one number a pixel"):
        _from_mask_images(rgb, RGB).mask(0)

# --- the head

def problem(n=200, d=6, c=3, p=4, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
         + rng.normal(size=d) * 3).astype(np.float16)
    p_of = np.exp(x.astype(float) @ rng.normal(size=(d, c)) * 0.3)
    p_of /= p_of.sum(1, keepdims=True)
    labels = np.stack([rng.choice(c, p * p, p=q) for q in p_of]).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = _IGNORE_INDEX
    return x, labels

@pytest.mark.parametrize("ridge", [1e-1, 1e-3])
def test_the_head_is_where_scikit_learn_is(ridge, monkeypatch):
    from sklearn.linear_model import LogisticRegression
    x, labels = problem()
    y = _class_counts(torch.from_numpy(labels), 1, 1, 3).numpy()
    *_, head = _fit_heads(_Tokens(x, labels, 1, 3), (1.0, ridge), 1)
    mean, std = x.astype(float).mean(0), x.astype(float).std(0)
    z, n = (x - mean) / std, y.sum()
    them = LogisticRegression(C=1 / (ridge * n), tol=1e-8, max_iter=5000).fit(
        np.repeat(z, 3, 0), np.tile([0, 1, 2], len(x)), sample_weight=y.ravel())
    def apart(head):
        # what all classes share changes no answer
        return (w := head.weights.numpy() * std[:, None]) - w.mean(1, keepdims=True)
    assert np.allclose(apart(head), them.coef_.T, atol=5e-3)
    log_p = them.predict_log_proba(z)
    assert head.loss == pytest.approx(-(y * log_p).sum() / n, abs=1e-4)
    monkeypatch.setattr(segmentation, "_BLOCK", 600)
    monkeypatch.setattr(segmentation, "_CACHE_BYTES", 0) # streamed
    streamed = _fit_heads(_Tokens(x, labels, 1, 3), (1.0, ridge), 1)[-1]
    assert (np.allclose(apart(streamed), apart(head), atol=5e-3)
            and streamed.loss == pytest.approx(head.loss, abs=1e-5))

def test_training_through_the_upsampling_ends_where_its_gradient_does():
    x, labels = problem(9 * 20)
    (head,) = _fit_heads(_Tokens(x, labels, 3, 3), (1e-2,), 4) # as many cells as pixels
    x = torch.from_numpy(x).double()
    std = x.std(0, correction=0)
    w, b = ((head.weights.double() * std[:, None]).requires_grad_(True),
            head.bias.double().requires_grad_(True))
    low = (x / std @ w + b).view(20, 3, 3, 3).permute(0, 3, 1, 2)
    wide = F.interpolate(low, size=(12, 12), mode="bilinear")
    mask = torch.from_numpy(labels).view(20, 3, 3, 4,
                                         4).permute(0, 1, 3, 2, 4).reshape(20, 12, 12).long()
    loss = F.cross_entropy(wide, mask, ignore_index=_IGNORE_INDEX)
    (loss + 1e-2 / 2 * (w ** 2).sum()).backward()
    assert (loss.item() == pytest.approx(head.loss, abs=1e-5) and w.grad.abs().max() < 1e-3
            and b.grad.abs().max() < 1e-3)

# --- from tokens to pixels

def colors(size=48, patch=8): # mean colour of each patch
    def read(x):
        return Features(patches=F.avg_pool2d(x, patch).flatten(2).transpose(1, 2))
    return Encoder(EncoderCard("colours", "", "", "", size=size, mean=(0.0,) * 3, std=(1.0,) * 3),
                   read, taps=("patches",))

SAYS = _LinearHead(100 * torch.eye(3), torch.zeros(3), 0.0, 0.0, 0)

@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (128, 80)])
@pytest.mark.parametrize("ratios, flip", [((1.0,), False), ((1.0, 1.32, 2.28), True)])
def test_a_head_that_knows_colours_finds_the_squares(shape, ratios, flip):
    data = _from_mask_images(painted(6, shape), RGB)
    s = Segmentation(RGB, np.zeros((6, 3, 3)), np.zeros((3, 3)), data.cluster, SAYS, None,
                     dict(ratios=ratios, flip=flip))
    inner = np.zeros(16, bool); inner[7:9] = True
    # the middle of each square
    inner = np.kron(np.ones((shape[0] // 16, shape[1] // 16), bool), np.outer(inner, inner))
    for k in range(6):
        got, truth = _predict_mask(s, colors(), data, k), data.mask(k)
        assert (got.shape == shape and (got == truth)[inner].mean() > 0.95
                and (got == truth).mean() > 0.7)

def test_overlaps_are_averaged_and_looks_too():
    g = torch.Generator().manual_seed(0)
    looks, tokens = ([_sliding_windows((48, 80), 48), _sliding_windows((48, 80), 48, 1.0, True)],
                     torch.randn(4, 36, 3, generator=g))
    got = _stitch_windows([SAYS], tokens, looks, (48, 80), 48)[0]
    total = torch.zeros(3, 48, 80)
    for look, t in zip(looks, tokens.split(2)):
        left, right = F.interpolate((100 * t).view(2, 6, 6, 3).permute(0, 3, 1, 2), size=(48, 48),
                                    mode="bilinear")
        one = torch.cat([left[..., :32], (left[..., 32:] + right[..., :16]) / 2, right[..., 16:]],
                        -1)
        total += (one.flip(-1) if look.flip else one).softmax(0) / 2
    assert torch.allclose(got, total, atol=1e-5)
    two = _stitch_windows([SAYS, SAYS], tokens, looks, (48, 80), 48)
    assert torch.allclose(two[0], two[1]) and torch.allclose(two[0], got, atol=1e-6)

# --- the score

def random_answers(n=30, c=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, c - 1, (n, 8, 8)) # the last class never occurs
    said = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, c - 1, truth.shape))
    return truth, said

def scored(truth, said, c=5, cluster=None):
    m = np.stack([segmentation._confusion(t, s, c) for t, s in zip(truth, said)])
    counts = np.stack([np.stack([np.diag(x), x.sum(1), x.sum(0)]) for x in m])
    return Segmentation([*map(str, range(c))], counts, m.sum(0),
                        np.arange(len(m)) // 3 if cluster is None else cluster)

def test_miou_is_scikit_learns_jaccard():
    from sklearn.metrics import jaccard_score
    truth, said = random_answers()
    s = scored(truth, said)
    theirs = jaccard_score(truth.ravel(), said.ravel(), average=None)
    assert np.allclose(_iou(s.counts.sum(0))[:4], theirs) and np.isnan(_iou(s.counts.sum(0))[4])
    assert _segmentation_summary(s, 50)["miou"] == pytest.approx(theirs.mean())
    said[0, 0, 0] = 4 # once called, never there
    assert miou(scored(truth, said).counts.sum(0)) < 4 / 5 * theirs.mean() + 1e-2

def test_draws_are_pictures_drawn_again():
    s = scored(*random_answers())
    got = bootstrap_counts(s.counts, s.cluster, 20, seed=3)
    drawn = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=20)
    names = np.unique(s.cluster.astype(str))
    for d, g in zip(drawn, got):
        again = [s.counts[s.cluster.astype(str) == c].sum(0) * k for c, k in zip(names, d)]
        assert np.allclose(g, np.sum(again, 0))
    one = replace(s, cluster=np.zeros(30))
    assert (_segmentation_summary(one, 50)["ci_low"] == _segmentation_summary(one, 50)["ci_high"]
            == pytest.approx(_segmentation_summary(one, 50)["miou"]))

def test_two_are_compared_on_the_same_draws():
    truth, said = random_answers()
    worse = np.where(np.random.default_rng(9).random(said.shape) < 0.15, (said + 1) % 4, said)
    a, b = scored(truth, said), scored(truth, worse)
    d, lo, hi = _miou_difference(a, b)
    alone = _segmentation_summary(a)["ci_high"] - _segmentation_summary(a)["ci_low"]
    assert (lo > 0 and hi - lo < alone
            and d
            == pytest.approx(_segmentation_summary(a)["miou"] - _segmentation_summary(b)["miou"]))
    assert _miou_difference(a, a) == (0, 0, 0)
    with pytest.raises(UserError, match="same images"):
        _miou_difference(a, scored(truth[::-1], said[::-1]))

def test_who_said_what_is_dealt_anew_in_whole_clusters():
    truth, said = random_answers()
    rng = np.random.default_rng(9)
    worse = np.where(rng.random(said.shape) < 0.02, (said + 1) % 4, said)
    few = np.arange(len(said)) * 6 // len(said) # six clusters: all 64 deals can be written out
    a, b = (replace(scored(truth, s), cluster=few) for s in (said, worse))
    def gap(deal):
        mixed = [np.where(np.array(deal)[few][:, None, None], y, x)
                 for x, y in ((a.counts, b.counts), (b.counts, a.counts))]
        return abs(miou(mixed[0].sum(0)) - miou(mixed[1].sum(0)))
    seen = gap([0] * 6)
    exact = np.mean([gap(d) >= seen * (1 - 1e-9) for d in product((0, 1), repeat=6)])
    assert exact < 1 and _miou_test(a, b, 20_000) == pytest.approx(exact, abs=0.015)
    assert _miou_test(a, a) == 1
    alone = [replace(s, cluster=np.arange(len(said)))
             for s in (a,
                       scored(truth, np.where(rng.random(said.shape) < 0.3, (said + 1) % 4, said)))]
    assert _miou_test(*alone, 999) == 1 / 1_000

def test_pixels_that_are_not_counted_do_not_count():
    truth, said = random_answers(4)
    other = said.copy()
    truth[:, :4], other[:, :4] = _IGNORE_INDEX, 0
    assert (scored(truth, said).counts == scored(truth, other).counts).all()

def test_the_majority_is_what_a_constant_says():
    data = _from_mask_images(painted(8, label=lambda m: np.where(m == 2, 1, m)), RGB)
    m = majority_baseline(data, data)
    share = np.mean([(data.mask(k) == 1).mean() for k in range(8)])
    assert (m.protocol["said"] == "green"
            and _segmentation_summary(m, 20)["accuracy"] == pytest.approx(share))
    # blue never occurs: two classes
    assert _segmentation_summary(m, 20)["miou"] == pytest.approx(share / 2)
    t = per_class_iou(m)
    assert t["most_confused_with"].tolist() == ["green", "", ""] and np.isnan(t.iou[2])

# --- the probe

def test_the_probe_learns_colours_and_not_from_noise(tmp_path):
    parts = [_from_mask_images(painted(n, seed=k), RGB) for k, n in enumerate((12, 6, 6))]
    found = segmentation_probe(colors(), *parts, tmp_path / "tokens")
    assert (_segmentation_summary(found, 50)["miou"] > 0.75
            and found.protocol["patches"] == 12 * 2 * 36)
    assert (found.path.chosen.sum() == 1
            and found.path.val_miou[found.path.chosen].iloc[0] == found.path.val_miou.max())
    # a weaker ridge fits the training pixels better
    assert (found.path.train_loss.diff().dropna() < 1e-6).all()
    blind = Encoder(EncoderCard("blind", "", "", "", size=48),
                    lambda x: Features(patches=x.new_ones(len(x), 36, 2)), taps=("patches",))
    flat = segmentation_probe(blind, *parts)
    assert (flat.counts == majority_baseline(parts[0], parts[2]).counts).all()

def test_more_looks_and_pixels_also_work(scenes):
    e = load("random:0")
    small = [s.first(n) for s, n in zip(scenes, (30, 10, 10))]
    one = segmentation_probe(e, *small, ridges=(1e-2,))
    many = segmentation_probe(e, *small, ratios=(1.0, 1.32), flip=True, patches_per_image=9,
                              cells=1, ridges=(1e-2,))
    assert many.protocol["ratios"] == [1.0, 1.32] and (many.counts[:, 1] == one.counts[:, 1]).all()
    with pytest.raises(UserError, match="smaller than the window"):
        segmentation_probe(e, *small, ratios=(0.5,))
    with pytest.raises(UserError, match="same classes"):
        segmentation_probe(e, small[0], small[1], _emoji_segments(WORLD, "test", 5, "drawing"))

def test_a_class_that_is_never_shown_is_never_called():
    wide = [_from_mask_images(painted(n, seed=k), ["red", "green", "gold", "blue"][:3] + ["blue"])
            for k, n in enumerate((8, 4, 4))]
    found = segmentation_probe(colors(), *wide) # `blue` has the number 3, which no mask holds
    assert (found.counts[:, 2, 3].sum() == 0 and _segmentation_summary(found, 20)["miou"] > 0.75
            and torch.isfinite(found.head.bias).all())
