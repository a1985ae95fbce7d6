"""Naming and retrieval against enumeration and open_clip; text towers against the libraries they
come from."""
import itertools, json
import numpy as np, pandas as pd, pytest, torch
import transformers as hf
from scipy.stats import hypergeom
from ccd.probing import zeroshot
from ccd.files import UserError
from ccd.settings import override
from ccd.encoders.base import Encoder, EncoderCard, Features
from ccd.encoders.loading import load
from ccd.stats import cluster_bootstrap
from ccd.encoders.adapters.text import load_text_encoder
from ccd.probing.zeroshot import (_PROMPTS, _build_zero_shot_classifier, _expected_topk_hit,
                                  _topk_accuracy, _zero_shot_predict, retrieval)

pytestmark = pytest.mark.numeric

@pytest.fixture
def rng(): return np.random.default_rng(0)

def test_a_lot_is_a_draw_without_replacement():
    k, a, w, r = np.array(list(itertools.product((1, 3, 8), (0, 2, 9), (0, 1, 5), (1, 2)))).T
    got = np.array([_expected_topk_hit(q, *(np.array([v]) for v in rest))[0]
                    for q, *rest in zip(k, a, w, r)])
    left = np.clip(k - a, 0, w + r)
    assert np.allclose(got, hypergeom.sf(0, w + r, r, left))

def by_permuting(sim, right, k):
    """Recall at k, and rank of the first right one, over every order of the gallery: ties fall as
    they lie."""
    hits, ranks = [], []
    for order in itertools.permutations(range(sim.shape[1])):
        order = np.array(order)
        first = order[np.argsort(-sim[:, order], axis=1, kind="stable")]
        place = np.array([right[q, f].argmax() for q, f in enumerate(first)])
        hits.append(place < k); ranks.append(place + 1)
    return np.mean(hits), np.median(np.mean(ranks, 0))

@pytest.mark.parametrize("twins", [False, True])
def test_retrieval_is_the_mean_over_all_orders_of_what_is_tied(rng, twins):
    # four directions: many ties
    images, captions = (rng.integers(0, 2, (n, 2)).astype(float) + [1, 0] for n in (4, 6))
    owner, said = np.array([0, 0, 1, 2, 3, 3]), list("abacde")
    right = owner == np.arange(4)[:, None]
    if twins: # `a` is said of 0 and of 1
        right[0, 2] = right[1, 0] = True
    u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions))
    sim = np.round(u @ v.T, 9)
    t = retrieval(images, captions, owner, said if twins else None, ks=(1, 2), n_resamples=50)
    for way, s, r in (("image to text", sim, right), ("text to image", sim.T, right.T)):
        own = t[t.direction == way]
        for k, got, rank in zip(own.k, own.recall, own.median_rank):
            assert (got, rank) == pytest.approx(by_permuting(s, r, k))

def test_whoever_tells_nothing_apart_is_at_chance(rng):
    owner = rng.integers(0, 50, 120)
    for x in (np.ones((50, 7)), np.zeros((50, 7))):
        t = retrieval(x, np.tile(rng.normal(size=7), (120, 1)), owner, n_resamples=20)
        assert (np.allclose(t.recall, t.chance)
                and (t.without_caption == 50 - len(set(owner.tolist()))).all())
    same = retrieval(x, np.ones((120, 7)), owner, ["the same words"] * 120, n_resamples=20)
    # all twins
    assert (np.allclose(same.recall, same.chance)
            and (same.recall[same.direction == "image to text"] == 1).all())

def test_strangers_are_near_chance_and_friends_far_above(rng):
    x, owner = rng.normal(size=(400, 16)), np.repeat(np.arange(400), 2)
    far = retrieval(x, rng.normal(size=(800, 16)), owner)
    near = retrieval(x, x[owner] + 0.3 * rng.normal(size=(800, 16)), owner)
    assert (((far.ci_low <= far.chance) & (far.chance <= far.ci_high)).mean() >= 5 / 6
            and (near.ci_low > 0.8).all())
    assert near.median_rank.max() == 1 and 150 < far.median_rank.max() < 250

def test_blocks_do_not_matter(rng, monkeypatch):
    x, t, owner = rng.normal(size=(60, 8)), rng.normal(size=(150, 8)), rng.integers(0, 60, 150)
    said = rng.choice(["a", "b", *map(str, range(90))], 150).tolist()
    whole = retrieval(x, t, owner, said, np.arange(60) // 3, n_resamples=50)
    monkeypatch.setattr(zeroshot, "_MAX_CELLS", 1000)
    pd.testing.assert_frame_equal(retrieval(x, t, owner, said, np.arange(60) // 3, n_resamples=50),
                                  whole, rtol=1e-9)
    assert whole.n_groups.max() <= 20

@pytest.mark.parametrize("change, match", [
    (dict(owner=np.arange(1, 11)), "image 10, and there are 10"),
    (dict(owner=np.arange(9)), "9 owners"),
    (dict(texts=["a"]), "1 wordings"),
    (dict(captions=np.zeros((0, 3)), owner=np.arange(0)), "no captions"),
    (dict(images=np.full((10, 3), np.nan)), "vectors of images hold NaN")])
def test_what_cannot_be_retrieved_is_said(change, match):
    right = dict(images=np.ones((10, 3)), captions=np.ones((10, 3)), owner=np.arange(10))
    with pytest.raises(UserError, match=match): retrieval(**right | change)

# --- naming

def test_naming_knows_the_first_k_and_takes_the_first_of_equals():
    classes = np.eye(4, dtype=np.float32)
    x = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1]], np.float16)
    said = _zero_shot_predict(x, classes, list("dcba"), 3)
    assert said.tolist() == [["d", "c", "b"], ["a", "b", "c"], ["d", "c", "b"]]
    t = _topk_accuracy(np.array(["c", "a", "a"]), said, ks=(1, 3, 5), n_resamples=20)
    # of three answers no fifth is known
    assert t.k.tolist() == [1, 3] and np.allclose(t.accuracy, [1 / 3, 2 / 3])
    labels = np.tile(np.array([1, 2, 2, 2]), 25)
    constant = _zero_shot_predict(np.ones((100, 4)), classes, [1, 2, 3, 4], 1)
    # the share of class 1
    assert _topk_accuracy(labels, constant, ks=(1,), n_resamples=20).accuracy[0] == 0.25
    with pytest.raises(UserError, match="2 dimensions and captions 4.*projected"):
        _zero_shot_predict(x[:, :2], classes, list("dcba"))

def test_unknown_templates_and_templates_without_a_place_are_refused():
    def one(captions):
        return torch.ones(len(captions), 2)
    with pytest.raises(UserError, match="unknown templates 'imagnet'"):
        _build_zero_shot_classifier(one, ["dog"], "imagnet")
    with pytest.raises(UserError, match="expected one {}"):
        _build_zero_shot_classifier(one, ["dog"], ["{} and {}"])
    with pytest.raises(UserError, match="0 names"): _build_zero_shot_classifier(one, [])

def test_the_emoji_world_is_named_as_it_was(tiny):
    "Against the loop that the published numbers were made with."
    from ccd.data.emoji.scenes import single_drawings
    from ccd.data.corpora import ImageDecoder
    from ccd.data.augment import eval_view, to_float
    net, speak = load("random:0"), bytes_of
    turn = torch.from_numpy(np.random.default_rng(1).normal(size=(192, 64))).float()
    see = Encoder(EncoderCard("x", "x", "x", "x", "projected"),
                  lambda x: Features(projected=net._features(x).cls @ turn))
    world = single_drawings(override(tiny, **{"data.max_emoji_images": 320}).data)
    items = world.remove_columns(["image", "captions"]).to_pandas()
    test = np.nonzero((items.split == "test").values)[0]
    names = sorted(set(items.name[test]))
    text = sum(speak([p.format(n) for n in names]) for p in _PROMPTS).numpy()
    x = eval_view(to_float(ImageDecoder(world, 64)[test]), 48)
    right = np.array(names)[(see.vector(x).numpy() @ text.T).argmax(1)] == items.name[test].values
    share, lo, hi = cluster_bootstrap(right, items.family[test].values, 100)
    classes = _build_zero_shot_classifier(speak, names, "emoji", unit=False)
    said = _zero_shot_predict(see.vector(x).numpy(), classes, names)
    first = _topk_accuracy(items.name[test].values, said, items.family[test].values,
                           n_resamples=100).iloc[0]
    assert first[["accuracy", "ci_low", "ci_high"]].tolist() == pytest.approx([share, lo, hi])

def bytes_of(captions): # [n, 64] unit vectors
    x = torch.zeros(len(captions), 64)
    for row, c in zip(x, captions):
        row += torch.bincount(torch.tensor([*c.encode()]) % 64, minlength=64)
    return torch.nn.functional.normalize(x, dim=1)

# --- text towers

BODY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
EYE = BODY | dict(image_size=32, patch_size=8)
CAPTIONS = ["a dog", "two times red apple", 'the word "tea"', "a"]

@pytest.fixture(scope="module")
def tokenizer():
    "Byte pairs of a few words; an end token, whose number is the largest."
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    bpe = ByteLevelBPETokenizer(lowercase=True)
    bpe.train_from_iterator(CAPTIONS, vocab_size=300, special_tokens=["<pad>", "<start>"],
                            show_progress=False)
    bpe.add_special_tokens(["<end>"])
    ids = {t: bpe.token_to_id(t) for t in ("<start>", "<end>")}
    bpe._tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>",
                                                       special_tokens=[*ids.items()])
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>",
                                      bos_token="<start>", eos_token="<end>")

def alive(net):
    torch.manual_seed(1)
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p) if p.ndim == 1 else 0.1 * torch.randn_like(p)
    return net.eval()

@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    done, ends = {}, dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                          pad_token_id=tokenizer.pad_token_id)
    words = BODY | ends | dict(vocab_size=len(tokenizer), max_position_embeddings=24)
    def of(kind):
        if kind not in done:
            folder, net = tmp_path_factory.mktemp(kind), alive(dict(
                clip=lambda: hf.CLIPModel(hf.CLIPConfig(text_config=words, vision_config=EYE,
                                                        projection_dim=24)),
                siglip=lambda: hf.SiglipModel(hf.SiglipConfig(text_config=words
                                                              | dict(projection_size=32),
                                                              vision_config=EYE)),
                eye=lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**EYE)))[kind]())
            net.save_pretrained(folder); tokenizer.save_pretrained(folder)
            hf.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=32).save_pretrained(folder)
            done[kind] = folder, net
        return done[kind]
    return of

@pytest.mark.parametrize("kind, padding", [("clip", True), ("siglip", "max_length")])
@torch.no_grad()
def test_a_text_tower_of_transformers_says_what_its_model_says(kind, padding, saved, tokenizer):
    folder, net = saved(kind)
    eye, x = load(f"hf:{folder}#feature=projected"), torch.rand(3, 3, 32, 32)
    speak = load_text_encoder(f"hf:{folder}")
    t = tokenizer(CAPTIONS, padding=padding, truncation=True, max_length=24, return_tensors="pt")
    if kind == "siglip": del t["attention_mask"]
    mean, std = (torch.tensor(v)[:, None, None] for v in (eye.card.mean, eye.card.std))
    out = net(pixel_values=(x - mean) / std, input_ids=t["input_ids"],
              **({"attention_mask": t["attention_mask"]} if kind == "clip" else {}))
    got = speak(CAPTIONS)
    assert (torch.allclose(got, out.text_embeds, atol=1e-5)
            and torch.allclose(got.norm(dim=1), torch.ones(4), atol=1e-5))
    cosine = torch.nn.functional.normalize(eye.vector(x), dim=1) @ got.T
    scores = cosine * net.logit_scale.exp() + (net.logit_bias if kind == "siglip" else 0)
    assert torch.allclose(scores, out.logits_per_image, atol=1e-4)
    assert torch.allclose(speak(CAPTIONS[:1]), got[:1], atol=1e-5) # alone or in company
    assert speak(["tea " * 100]).isfinite().all() # too long: cut

def test_an_open_clip_tower_and_its_classifier(tmp_path):
    import open_clip
    from open_clip.zero_shot_classifier import build_zero_shot_classifier_legacy
    from safetensors.torch import save_file
    config = dict(embed_dim=24,
                  vision_cfg=dict(image_size=32, patch_size=8, width=48, layers=2, head_width=24),
                  text_cfg=dict(context_length=24, vocab_size=49408, width=32, heads=2, layers=2))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config,
                                                                    preprocess_cfg=dict(
        mean=[0.5] * 3, std=[0.25] * 3, resize_mode="shortest", interpolation="bicubic"))))
    model = alive(open_clip.CLIP(**config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()},
              tmp_path / "open_clip_model.safetensors")
    tokenize, speak = (open_clip.get_tokenizer(f"local-dir:{tmp_path}"),
                       load_text_encoder(f"open_clip:{tmp_path}"))
    with torch.no_grad():
        assert torch.allclose(speak(CAPTIONS),
                              model.encode_text(tokenize(CAPTIONS), normalize=True), atol=1e-5)
    names = ["dog", "red apple", "tea"]
    theirs = build_zero_shot_classifier_legacy(model, tokenize, names,
                                               open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert np.allclose(_build_zero_shot_classifier(speak, names, "imagenet"), theirs.T.numpy(),
                       atol=1e-5)

def test_a_run_speaks_and_a_run_without_captions_does_not(tiny, corpus, tmp_path):
    from ccd.encoders.trained import load_run_text_encoder
    from ccd.training.loop import train
    own = override(tiny, **{"control.samples": 16})
    for objective in ("clip", "dino"): train(objective, own, corpus, tmp_path / objective)
    got = load_text_encoder(f"ccd:{tmp_path / 'clip'}")(CAPTIONS)
    assert torch.equal(got, load_run_text_encoder(tmp_path / "clip")(CAPTIONS))
    assert (got.shape[1]
            == load(f"ccd:{tmp_path / 'clip'}#feature=projected").vector(torch.rand(1, 3,
                                                                                    *[own.control.vit.image_size] * 2)).shape[1])  # noqa: E501
    with pytest.raises(UserError, match="trained without captions"):
        load_text_encoder(f"ccd:{tmp_path / 'dino'}")

def test_an_encoder_without_text_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no text encoder"): load_text_encoder("random:0")
    with pytest.raises(UserError, match="no finished run"): load_text_encoder(f"ccd:{tmp_path}")
    with pytest.raises(UserError, match="is a clip_vision_model and has no text tower"):
        load_text_encoder(f"hf:{saved('eye')[0]}")
    with pytest.raises(UserError, match="names no weights"): load_text_encoder("open_clip:ViT-B-16")
