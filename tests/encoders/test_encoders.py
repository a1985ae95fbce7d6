"""Encoders of every library against that library used directly: all taps, layers and norms; pixels
to the bit; what must be refused."""
import json, os, pickle, subprocess, sys
import numpy as np, pytest, torch
import transformers as hf
from PIL import Image
from torch import nn
from ccd.encoders.adapters import timm as adapters_timm, transformers
from ccd.encoders import preprocessing, trained
from ccd.files import UserError, read_json
from ccd.settings import Control
from ccd.encoders.preprocessing import ImageTransform
from ccd.encoders.names import PUBLISHED
from ccd.encoders.loading import load

pytestmark = pytest.mark.numeric

SIDE, PATCH, DEPTH = 32, 8, 3
BODY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=DEPTH, num_attention_heads=2)
EYE = BODY | dict(image_size=SIDE, patch_size=PATCH)
WORDS = (BODY
         | dict(vocab_size=64, max_position_embeddings=8, bos_token_id=1, eos_token_id=2,
                pad_token_id=0))

def alive(net):
    "No bias is 0 and no norm is 1, so that a norm or a bias left out is seen."
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for p in net.parameters():
            p.data += 0.3 * torch.randn_like(p) if p.ndim == 1 else 0.02 * torch.randn_like(p)
    return net.eval()

def made(kind):
    clip, siglip = hf.CLIPVisionConfig(**EYE, projection_dim=16), hf.SiglipVisionConfig(**EYE)
    return alive(dict(
        clip=lambda: hf.CLIPModel(hf.CLIPConfig(text_config=WORDS, vision_config=EYE,
                                                projection_dim=24)),
        clip_vision=lambda: hf.CLIPVisionModel(clip),
        clip_projected=lambda: hf.CLIPVisionModelWithProjection(clip),
        siglip=lambda: hf.SiglipModel(hf.SiglipConfig(text_config=WORDS | dict(projection_size=32),
                                                      vision_config=EYE)),
        siglip_vision=lambda: hf.SiglipVisionModel(siglip),
        siglip2=lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**BODY, patch_size=PATCH,
                                                                     num_patches=(SIDE // PATCH) ** 2)),  # noqa: E501
        vit=lambda: hf.ViTModel(hf.ViTConfig(**EYE)),
        vit_classifier=lambda: hf.ViTForImageClassification(hf.ViTConfig(**EYE, num_labels=5)),
        deit=lambda: hf.DeiTModel(hf.DeiTConfig(**EYE)),
        dinov2=lambda: hf.Dinov2Model(hf.Dinov2Config(**EYE)),
        dinov2_registers=lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**EYE,
                                                                                          num_register_tokens=4)),
        dinov3=lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**EYE, num_register_tokens=4)),
        mae=lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**EYE)),
        ijepa=lambda: hf.IJepaModel(hf.IJepaConfig(**EYE)),
    )[kind]())

# tokens before the patches
PREFIX = dict(siglip=0, siglip_vision=0, siglip2=0, ijepa=0, deit=2, dinov2_registers=5, dinov3=5)
KINDS = ("clip", "clip_vision", "clip_projected", "siglip", "siglip_vision", "siglip2", "vit",
         "vit_classifier", "deit", "dinov2",
         "dinov2_registers", "dinov3", "mae", "ijepa")
GIVEN = "fit=squash,size=32,filter=bicubic,mean=half,std=half" # where there is no image processor

def processor(**how):
    return hf.CLIPImageProcessorPil(**dict(size=dict(shortest_edge=SIDE), crop_size=SIDE) | how)

@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    "kind -> (folder, model)"
    done = {}
    def of(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            model = made(kind)
            model.save_pretrained(folder)
            if kind != "siglip2": processor().save_pretrained(folder)
            done[kind] = folder, model
        return done[kind]
    return of

@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))

def normed(encoder, x):
    return (x
            - torch.tensor(encoder.card.mean)[:, None,
                                              None]) / torch.tensor(encoder.card.std)[:, None, None]

def told(kind, model, x):
    """All hidden states, what follows the last block in the library itself, the projection: by the
    library's own outputs."""
    with torch.no_grad():
        if kind == "mae":
            model.config.mask_ratio = 0.0
            o = model(x, noise=torch.linspace(0, 1, 16).expand(len(x), 16),
                      output_hidden_states=True)
        elif kind == "siglip2":
            from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches  # noqa: E501
            rows = torch.stack([torch.as_tensor(np.asarray(convert_image_to_patches(i.numpy(),
                                                                                    PATCH)))
                                for i in x])
            o = model(rows.flatten(2), torch.ones(len(x), 16, dtype=torch.long),
                      torch.full((len(x), 2), 4), output_hidden_states=True)
        elif kind in ("clip", "siglip"): o = model.vision_model(x, output_hidden_states=True)
        elif kind == "vit_classifier": o = model.vit(x, output_hidden_states=True)
        else: o = model(x, output_hidden_states=True)
        if kind == "clip": shared = model.get_image_features(x)
        elif kind == "siglip": shared = model.get_image_features(x)
        else: shared = getattr(o, "image_embeds", o.pooler_output if "siglip" in kind else None)
    return o.hidden_states, o.last_hidden_state, getattr(shared, "pooler_output", shared)

def final_norm(kind, model):
    body = model.vit if kind == "vit_classifier" else getattr(model, "vision_model", model)
    name = ("post_layernorm" if kind.startswith(("clip", "siglip")) else "norm" if kind == "dinov3"
            else "layernorm")
    return getattr(body, name)

def spec_of(kind, folder, **options):
    more = GIVEN.split(",") if kind == "siglip2" else []
    return f"hf:{folder}#" + ",".join(more + [f"{k}={v}" for k, v in options.items()])

def close(a, b):
    assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-4,
                                                 atol=2e-5), float((a - b).abs().max())

@pytest.mark.parametrize("kind", KINDS)
def test_every_tap_of_a_transformers_model_is_what_the_model_says(kind, saved, pixels):
    folder, model = saved(kind)
    p = PREFIX.get(kind, 1)
    norm = final_norm(kind, model)
    for layer, when in ((-1, "after"), (-1, "before"), (-2, "after"), (1, "before")):
        e = load(spec_of(kind, folder, layer=layer, final_norm=str(when == 'after').lower()))
        states, end, shared = told(kind, model, normed(e, pixels))
        with torch.no_grad():
            t = states[layer if layer > 0 else DEPTH + 1 + layer]
            if when == "after": t = norm(t)
        # the library's own end
        if layer == -1 and when == "after" and not kind.startswith("clip"):
            close(t, end)
        f = e.features(pixels)
        if p: close(f.cls, t[:, 0])
        else: assert f.cls is None
        close(f.patches, t[:, p:])
        close(f.pooled, t[:, p:].mean(1))
        assert f.patches.shape[1] == (SIDE // PATCH) ** 2
        whole = layer == -1 and when == "after"
        if whole and shared is not None: close(f.projected, shared)
        else: assert f.projected is None
        assert e.card.tap == ("cls" if p else "pooled")
        close(e.vector(pixels), getattr(f, e.card.tap))
        assert (e.card.layer
                == ("last" if layer == -1
                    else f"{DEPTH + 1 + layer if layer < 0 else layer} of {DEPTH}"))
        assert e.card.norm == f"{when} the final norm"

SHAPES = (64, 64), (37, 91), (300, 177), (33, 97), (98, 33), (640, 427), (50, 51), (35, 32)

def pictures():
    "Noise and edges, of many shapes: with odd margins, smaller and larger than the square."
    rng = np.random.default_rng(0)
    for w, h in SHAPES:
        x = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        x[h // 4:h // 2, w // 4:] = (255, 0, 0)
        yield Image.fromarray(x)

PROCESSORS = dict(
    clip=(hf.CLIPImageProcessorPil, hf.CLIPImageProcessor,
          dict(size=dict(shortest_edge=48), crop_size=48)),
    dinov2=(hf.BitImageProcessorPil, hf.BitImageProcessor,
            dict(size=dict(shortest_edge=64), crop_size=dict(height=56, width=56))),
    vit=(hf.ViTImageProcessorPil, hf.ViTImageProcessor, dict(size=dict(height=48, width=48))),
    siglip=(hf.SiglipImageProcessorPil, hf.SiglipImageProcessor,
            dict(size=dict(height=48, width=48))))

def plain(p, im):
    return np.asarray(p(images=im, do_rescale=False, do_normalize=False,
                        return_tensors="np")["pixel_values"][0])

@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_image_processor(kind, tmp_path):
    pil, fast, how = PROCESSORS[kind]
    pil(**how).save_pretrained(tmp_path)
    fit, mean, std = transformers._hf_preprocessing(tmp_path, None)
    assert (list(mean), list(std)) == (list(pil().image_mean), list(pil().image_std))
    fit, apart = pickle.loads(pickle.dumps(fit)), []
    for im in pictures():
        got, want = fit(im), plain(pil(**how), im)
        assert got.dtype == np.uint8 and np.array_equal(got.transpose(2, 0, 1), want)
        apart.append(np.abs(plain(fast(**how), im).astype(int) - want).ravel())
    # its other processor, on tensors, is a level off here and there
    assert (np.concatenate(apart) <= 1).mean() > 0.99

def test_pixels_of_a_processor_on_tensors_are_a_level_off(tmp_path):
    p = hf.DINOv3ViTImageProcessor(size=dict(height=48, width=48)) # there is no other
    p.save_pretrained(tmp_path)
    fit, *_ = transformers._hf_preprocessing(tmp_path, None)
    for im in pictures():
        want = np.asarray(p(images=im, do_normalize=False,
                            return_tensors="np")["pixel_values"][0]) * 255
        assert np.abs(fit(im).transpose(2, 0, 1) - want).max() <= 1.01

@pytest.mark.parametrize("how",
                         [dict(crop_pct=0.9), dict(crop_pct=0.875, interpolation="bilinear"),
                          dict(crop_pct=1.0),
                                 dict(crop_pct=0.9, crop_mode="squash"),
                          dict(crop_pct=1.0, crop_mode="squash")])
def test_pixels_are_those_of_timm(how):
    from timm.data import create_transform, resolve_data_config
    c = resolve_data_config(how | dict(input_size=(3, 48, 48)), pretrained_cfg={})
    fit, mean, std = adapters_timm._timm_preprocessing(c, "x")
    t = create_transform(**c)
    assert tuple(t.transforms[-1].mean.tolist()) == pytest.approx(mean)
    t.transforms = t.transforms[:-1] # all but the normalisation
    for im in pictures():
        assert np.array_equal(fit(im), (t(im) * 255).round().byte().permute(1, 2, 0).numpy())

def test_what_no_square_comes_of_is_refused(tmp_path):
    from timm.data import resolve_data_config
    with pytest.raises(UserError, match="border"):
        adapters_timm._timm_preprocessing(resolve_data_config(dict(crop_mode="border"),
                                                              pretrained_cfg={}), "timm:x")
    for n, bad in enumerate((dict(do_center_crop=False), dict(crop_size=dict(height=32, width=40)),
                             dict(do_resize=False),
                             dict(rescale_factor=1 / 127.5))):
        processor(**bad).save_pretrained(tmp_path / str(n))
        with pytest.raises(UserError, match="does not make one square"):
            transformers._hf_preprocessing(tmp_path / str(n), None)

@pytest.mark.parametrize("cls, how",
                         [("LevitImageProcessor", {}), ("PoolFormerImageProcessor", {}),
                          ("ConvNextImageProcessor", {}),
                                      ("MobileViTImageProcessor",
                                       dict(size=dict(shortest_edge=256)))])
def test_a_processor_that_does_more_than_it_says_is_refused(cls, how, tmp_path):
    getattr(hf, cls)(**how).save_pretrained(tmp_path) # a size of its own making, or blue before red
    with pytest.raises(UserError, match="differs from its configuration|does not make one square"):
        transformers._hf_preprocessing(tmp_path, None)

def test_loading_draws_no_random_number(saved, timm_saved, clip_saved):
    for spec in (f"hf:{saved('vit')[0]}", f"timm:{timm_saved('vit')[0]}",
                 f"open_clip:{clip_saved('vit')[0]}", "random:1"):
        torch.manual_seed(5); first = torch.rand(3)
        torch.manual_seed(5); load(spec)
        assert torch.equal(torch.rand(3), first)

@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_a_network_of_stages_is_read_at_its_end(kind, tmp_path):
    model = alive(dict(swin=lambda: hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4,
                                                               embed_dim=16, depths=[1, 1, 1],
                                                               num_heads=[1, 2, 4], window_size=2)),
                       resnet=lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8,
                                                                     hidden_sizes=[8, 16],
                                                                     depths=[1, 1])))[kind]())
    model.save_pretrained(tmp_path); processor().save_pretrained(tmp_path)
    e, x = load(f"hf:{tmp_path}"), torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad(): t = model(normed(e, x)).last_hidden_state
    close(e.vector(x), t.mean(1) if t.ndim == 3 else t.mean((2, 3)))
    assert (e.card.tap, e.card.norm) == ("pooled", "as the network leaves it")
    with pytest.raises(UserError, match="only its end can be read"): load(f"hf:{tmp_path}#layer=1")

# --- timm

SMALL = dict(img_size=SIDE, patch_size=PATCH, depth=DEPTH, embed_dim=48, num_heads=2)
TIMM = dict( # name, arguments, tokens before the patches
    vit=("vit_tiny_patch16_224", SMALL, 1), dinov3=("vit_small_patch16_dinov3", SMALL, 5),
    beit=("beit_base_patch16_224", SMALL, 1),
    siglip=("vit_base_patch16_siglip_224", SMALL, 0),
    deit=("deit_tiny_distilled_patch16_224", SMALL, 2),
    resnet=("resnet10t", {}, None), convnext=("convnext_atto", dict(depths=(1, 1, 1, 1)), None),
    swin=("swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1), embed_dim=24), None))

@pytest.fixture(scope="session")
def timm_saved(tmp_path_factory):
    import timm
    from timm.models import save_for_hf
    done = {}
    def of(kind):
        if kind not in done:
            name, how, _ = TIMM[kind]
            side = dict(swin=224, resnet=64, convnext=64).get(kind, SIDE)
            model = alive(timm.create_model(name,
                                            pretrained_cfg_overlay=dict(input_size=(3, side, side)),
                                            **how))
            folder = tmp_path_factory.mktemp(kind)
            save_for_hf(model, folder, model_args=how, safe_serialization=True)
            done[kind] = folder, model
        return done[kind]
    return of

@pytest.mark.parametrize("kind", [k for k, v in TIMM.items() if v[2] is not None])
def test_every_tap_of_a_timm_transformer_is_what_timm_says(kind, timm_saved, pixels):
    (folder, model), prefix = timm_saved(kind), TIMM[kind][2]

    for layer, when in ((-1, "after"), (-1, "before"), (-2, "after"), (1, "before")):
        e = load(f"timm:{folder}#layer={layer},final_norm={str(when == 'after').lower()}")
        x, f = normed(e, pixels), e.features(pixels)
        k = layer if layer > 0 else DEPTH + layer + 1
        with torch.no_grad():
            more = dict(norm=when == "after" and kind != "beit", output_fmt="NLC",
                        intermediates_only=True)
            if prefix:
                (patches,
                 first), = model.forward_intermediates(x, indices=[k - 1],
                                                       return_prefix_tokens=True, **more)
            else: patches, = model.forward_intermediates(x, indices=[k - 1], **more)
            pooled = patches.mean(1)
            if kind == "beit" and when == "after":
                first, pooled = model.fc_norm(first), model.fc_norm(pooled)
            close(f.patches, patches)
            close(f.pooled, pooled)
            if prefix: close(f.cls, first[:, 0])
            else: assert f.cls is None and e.card.tap == "pooled"
            if kind == "siglip" and layer == -1 and when == "after": close(f.projected, model(x))
            else: assert f.projected is None
    if kind in ("dinov3", "beit"): # timm's own vector is the mean of the patches
        e = load(f"timm:{folder}#feature=pooled")
        with torch.no_grad():
            own = model.forward_head(model.forward_features(normed(e, pixels)), pre_logits=True)
        close(e.vector(pixels), own)

@pytest.mark.parametrize("kind", [k for k, v in TIMM.items() if v[2] is None])
def test_a_map_is_pooled_over_its_places(kind, timm_saved):
    folder, model = timm_saved(kind)
    e = load(f"timm:{folder}")
    x = torch.rand(2, 3, e.card.size, e.card.size)
    with torch.no_grad():
        t = model.forward_features(normed(e, x))
        if kind == "swin": t = t.permute(0, 3, 1, 2) # this one ends in [B, H, W, C]
        # all three pool so
        close(e.vector(x),
              model.forward_head(model.forward_features(normed(e, x)), pre_logits=True))
    close(e.features(x).patches, t.flatten(2).transpose(1, 2))
    if kind == "convnext":
        close(load(f"timm:{folder}#final_norm=false").vector(x), t.mean((2, 3)))
        assert e.card.norm == "after the final norm, which follows the mean"
    else:
        assert e.card.norm == "as the network leaves it"
        with pytest.raises(UserError, match="cannot be read before its final norm"):
            load(f"timm:{folder}#final_norm=false")
    with pytest.raises(UserError, match="only its end can be read"): load(f"timm:{folder}#layer=-2")
    with pytest.raises(UserError, match="has no feature 'cls'.*pooled"):
        load(f"timm:{folder}#feature=cls")

def test_timm_reads_another_size_when_asked(timm_saved):
    import timm
    folder, _ = timm_saved("vit")
    e = load(f"timm:{folder}#size=64")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=64).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): close(e.vector(x), model.forward_features(normed(e, x))[:, 0])
    assert e.fit == ImageTransform(64, 71, even=True) # 64 / 0.9, as timm cuts
    e = load(f"timm:{timm_saved('resnet')[0]}#size=96,resize=squash")
    assert (e.vector(torch.rand(1, 3, 96, 96)).shape == (1, 512)
            and e.fit == ImageTransform(96, squash=True, even=True))

# --- open_clip

VISION = dict(image_size=SIDE, patch_size=PATCH, width=48, layers=DEPTH, head_width=24)
TOWERS = dict(
    vit=VISION, vit_avg=VISION | dict(pool_type="avg", final_ln_after_pool=True),
    coca=VISION | dict(attentional_pool=True, attn_pooler_heads=2),
    resnet=dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=8),
    siglip=dict(image_size=224, timm_model_name="vit_tiny_patch16_224", timm_pool="map",
                timm_proj="none"),
    timm_resnet=dict(image_size=64, timm_model_name="resnet10t", timm_pool="avg",
                     timm_proj="linear"))

@pytest.fixture(scope="session")
def clip_saved(tmp_path_factory):
    import open_clip
    from safetensors.torch import save_file
    done = {}
    def of(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            text = dict(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
            config = dict(embed_dim=192 if kind == "siglip" else 24, vision_cfg=TOWERS[kind],
                          text_cfg=text)
            about = dict(model_cfg=config | dict(custom_text="timm_model_name" in TOWERS[kind]),
                         preprocess_cfg=dict(
                mean=[0.5] * 3, std=[0.25] * 3,
                resize_mode="squash" if kind == "siglip" else "shortest", interpolation="bicubic"))
            (folder / "open_clip_config.json").write_text(json.dumps(about))
            whole = (open_clip.CustomTextCLIP if "timm_model_name" in TOWERS[kind]
                     else open_clip.CLIP)
            model = alive(whole(**config))
            save_file({k: v.contiguous() for k, v in model.state_dict().items()},
                      folder / "open_clip_model.safetensors")
            done[kind] = folder, model
        return done[kind]
    return of

@pytest.mark.parametrize("kind", ["vit", "vit_avg", "coca"])
def test_every_tap_of_an_open_clip_tower_is_what_open_clip_says(kind, clip_saved, pixels):
    folder, model = clip_saved(kind)
    late = kind == "vit_avg" # norms what it has pooled
    for layer, when in ((-1, "after"), (-1, "before"), (-2, "after"), (1, "before")):
        e = load(f"open_clip:{folder}#layer={layer},final_norm={str(when == 'after').lower()}")
        x, f = normed(e, pixels), e.features(pixels)
        with torch.no_grad():
            o = model.visual.forward_intermediates(x, indices=[layer - 1 if layer > 0 else layer],
                                                   output_fmt="NLC",
                normalize_intermediates=when == "after" and kind == "vit", intermediates_only=True,
                                                   output_extra_tokens=True)
            cls, patches = o["image_intermediates_prefix"][0][:, 0], o["image_intermediates"][0]
            pooled = patches.mean(1)
            if late and when == "after":
                cls, pooled = model.visual.ln_post(cls), model.visual.ln_post(pooled)
            close(f.cls, cls); close(f.patches, patches); close(f.pooled, pooled)
            if layer == -1 and when == "after": close(f.projected, model.encode_image(x))
            else: assert f.projected is None
    with torch.no_grad():
        if late:
            close(load(f"open_clip:{folder}#feature=pooled").vector(pixels) @ model.visual.proj,
                  model.encode_image(x))
        if kind == "vit":
            close(load(f"open_clip:{folder}").vector(pixels) @ model.visual.proj,
                  model.encode_image(x))
    assert kind != "coca" or e.card.norm == "none"

@pytest.mark.parametrize("kind", ["resnet", "siglip", "timm_resnet"])
def test_towers_without_cls_are_pooled_and_projected(kind, clip_saved):
    folder, model = clip_saved(kind)
    e = load(f"open_clip:{folder}")
    pixels = torch.rand(2, 3, e.card.size, e.card.size)
    x, f = normed(e, pixels), e.features(pixels)
    with torch.no_grad():
        close(f.projected, model.encode_image(x))
        if kind == "siglip":
            t = model.visual.trunk.forward_features(x)
            close(f.cls, t[:, 0])
            close(f.pooled, t[:, 1:].mean(1)) # this little one has a class token
            assert e.fit == ImageTransform(224, squash=True, even=True)
        else:
            t = model.visual.forward_intermediates(x, indices=1)["image_intermediates"][-1]
            close(e.vector(pixels), t.mean((2, 3)))
            assert e.card.tap == "pooled" and e.fit == ImageTransform(64, even=True)

def test_pixels_are_those_of_open_clip(clip_saved):
    import open_clip
    for kind in ("vit", "siglip"):
        folder, _ = clip_saved(kind)
        e = load(f"open_clip:{folder}")
        *_, t = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        for im in pictures():
            raw = torch.from_numpy(e.fit(im)).permute(2, 0, 1) / 255
            assert torch.allclose(normed(e, raw), t(im), atol=1e-6)

def test_open_clip_reads_another_size_when_asked(clip_saved):
    import open_clip
    folder, _ = clip_saved("vit")
    e, x = load(f"open_clip:{folder}#size=48,feature=projected"), torch.rand(2, 3, 48, 48)
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=48).eval()
    with torch.no_grad(): close(e.vector(x), model.encode_image(normed(e, x)))
    assert e.fit == ImageTransform(48, even=True) and e.card.projection == "applied"

def test_what_is_wrong_with_an_open_clip_name_is_said(clip_saved, tmp_path):
    with pytest.raises(UserError, match="names no weights.*ARCH/TAG"): load("open_clip:ViT-B-16")
    with pytest.raises(UserError, match="not found in built-ins"): load("open_clip:ViT-Z-16/openai")
    folder, _ = clip_saved("vit")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    # no weights: not a random tower
    with pytest.raises(UserError, match="could not be loaded"):
        load(f"open_clip:{tmp_path}")

# --- the encoders that were here before

def test_runs_and_random_vits_have_the_bits_they_had():
    "The vectors as they were read before there were layers and norms to choose."
    from ccd.training.towers import build_vit
    x = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for spec in ("random:3", "ccd:emoji/clip", "ccd:emoji/dino"):
        e = load(spec)
        if spec == "random:3": model, projection = build_vit(Control().vit, 3).eval(), None
        else:
            from safetensors.torch import load_file
            run = trained.find_release(spec.partition(":")[2])
            weights = {k: v.float() for k, v in load_file(run / "encoder.safetensors").items()}
            projection, model = (weights.pop("projection.weight", None),
                                 build_vit(Control().vit).eval())
            model.load_state_dict(weights)
        with torch.no_grad(): t = model.forward_features((x - 0.5) / 0.25)
        f = e.features(x)
        close(e.vector(x), t[:, 0]); close(f.patches, t[:, 1:]); close(f.pooled, t[:, 1:].mean(1))
        assert (f.projected is None) == (projection is None)
        if projection is not None: close(f.projected, t[:, 0] @ projection.T)
        assert (e.fit is None
                and (e.card.layer, e.card.norm,
                     e.card.size) == ("last", "after the final norm", 48))
        with torch.no_grad():
            before, after = model.forward_intermediates((x - 0.5) / 0.25, indices=[2],
                                                        output_fmt="NLC", norm=False,
                                                        intermediates_only=True), \
                model.forward_intermediates((x - 0.5) / 0.25, indices=[2], output_fmt="NLC",
                                            norm=True, intermediates_only=True)
        close(load(f"{spec}#layer=3,final_norm=false,feature=pooled").vector(x), before[0].mean(1))
        close(load(f"{spec}#layer=-2,feature=pooled").vector(x), after[0].mean(1))
        joined = torch.cat([load(f"{spec}#layer={k}").vector(x) for k in (2, 3, 4)] + [f.pooled], 1)
        e = load(f"{spec}#n_last_blocks=3,feature=cls+pooled")
        close(e.vector(x), joined)
        assert (e.card.tap, e.card.layer) == ("cls+pooled", "2 to 4 of 4")
    y = torch.rand(2, 3, 16, 16)
    assert torch.equal(load("pixels:16").vector(y), ((y - 0.5) / 0.25).flatten(1))

def test_the_cosine_of_two_histograms_is_their_bhattacharyya_coefficient():
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) ** 2
    x[0, :, :32] = 1.0
    e = load("colors:4")
    v = e.vector(x)
    p, q = (np.histogramdd(i.flatten(1).T.numpy(), bins=4, range=[(0, 1)] * 3)[0] / 64**2
            for i in x)
    assert v.shape == (2, 64) and np.allclose(v.norm(dim=1), 1, atol=1e-6)
    assert float(v[0] @ v[1]) == pytest.approx(float(np.sqrt(p * q).sum()), abs=1e-6)
    # knows colours, and not where they are
    assert torch.equal(v, e.vector(x.flip(3)[..., torch.randperm(64)]))
    with pytest.raises(UserError, match="1 to 32 bins"): load("colors:64")

# --- an image that is not square

def expanded(im, color): # LLaVA's way, the square made whole
    side = max(im.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(im, tuple((side - v) // 2 for v in im.size))
    return square

@pytest.mark.parametrize("shape", [(64, 64), (90, 40), (41, 90), (700, 30), (33, 700), (1, 50)])
@pytest.mark.parametrize("resample", ["bicubic", "nearest", "lanczos"])
def test_a_padded_image_is_what_the_whole_square_gives(shape, resample):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3),
                                                           dtype=np.uint8))
    color = (122, 116, 104)
    want = expanded(im, color).resize((48, 48), preprocessing.RESAMPLING[resample])
    assert np.array_equal(ImageTransform(48, pad=color, filter=resample)(im), want)
    cut = expanded(im, color).resize((60, 60),
                                     preprocessing.RESAMPLING[resample]).crop((6, 6, 54, 54))
    assert np.array_equal(ImageTransform(48, 60, pad=color, filter=resample)(im), cut)

def test_padding_is_that_of_llava(saved):
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs = LlavaImageProcessorPil(do_pad=True, size=dict(shortest_edge=SIDE),
                                    crop_size=dict(height=SIDE, width=SIDE), image_mean=mean,
                                    image_std=std)
    e = load(f"hf:{saved('clip_vision')[0]}#resize=pad,mean=clip,std=clip")
    for shape in ((90, 40), (33, 71)):
        im = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape[::-1], 3),
                                                               dtype=np.uint8))
        want = (theirs(images=im, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * std
                + mean)
        assert np.abs(e.fit(im) - 255 * want).max() < 0.51 # theirs are floats, ours levels
    assert e.card.resize == "padded to a square with (122, 116, 104), both sides to 32 px, bicubic"

def test_an_encoder_of_squares_pads_when_asked():
    plain, crop, squash, pad = (load(f"random:0{way}")
                                for way in ("", "#resize=crop", "#resize=squash", "#resize=pad"))
    assert plain.fit is crop.fit is None and plain.card == crop.card
    im = Image.new("RGB", (96, 48), (255, 0, 0))
    assert (squash.fit(im) == (255, 0, 0)).all()
    got = pad.fit(im)
    assert (got[[0, 9, 38, 47]] == (127, 127, 127)).all() and (got[15:33] == (255, 0, 0)).all()
    assert len({e.card.resize for e in (plain, squash, pad)}) == 3

@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("shape", [(1000, 40), (37, 801)])
def test_a_thin_image_is_cut_before_it_is_resized(shape, even):
    fit, n = ImageTransform(48, 56, even=even), 56
    # smooth: no overshoot is clipped
    few = np.random.default_rng(2).integers(64, 192, (9, 9, 3), dtype=np.uint8)
    im = Image.fromarray(few).resize(shape, Image.Resampling.BILINEAR)
    to = fit.resized(im.size)
    x, y = ((round((s - 48) / 2) if even else (s - 48) // 2) for s in to)
    want = np.asarray(im.resize(to,
                                Image.Resampling.BICUBIC).crop((x, y, x + 48, y + 48))).astype(int)
    assert max(to) > preprocessing._THIN * n and np.abs(fit(im) - want).max() <= 1

@pytest.mark.parametrize("fit",
                         [ImageTransform(48), ImageTransform(48, squash=True),
                          ImageTransform(48, pad=(1, 2, 3))])
@pytest.mark.parametrize("shape", [(200_000, 2), (2, 200_000)])
def test_a_thread_of_an_image_takes_little_memory(shape, fit, monkeypatch):
    "The largest image that is made has as many pixels as a few of what goes in and comes out."
    made, real = [], Image.Image._new
    monkeypatch.setattr(Image.Image, "_new",
                        lambda self, im: made.append(im.size) or real(self, im))
    assert fit(Image.new("RGB", shape, (9, 9, 9))).shape == (48, 48, 3)
    assert max(w * h for w, h in made) <= preprocessing._LONGEST**2

# --- names, and what must be refused

@pytest.mark.parametrize("spec, said", [
    ("hf:x#feature=mean", "cls, pooled, cls\\+pooled"), ("hf:x#layer=0", "-1 for the last block"),
    ("hf:x#colour=3", "unknown option 'colour=3'"),
    ("hf:x#mean=1/2", "imagenet, clip, half"), ("hf:x#size=big", "a number of pixels"),
    ("hf:", "has no name"), ("timm:", "has no name"),
    ("hf:/no/such/folder", "is not a folder"), ("timm:./nowhere", "is not a folder"),
    ("pixels:16#feature=cls", "no options"),
    ("random:0#size=64",
     "random takes feature, layer, final_norm, n_last_blocks, resize, precision, not size"),
    ("random:0#n_last_blocks=5", "up to its layer there are 4"),
    ("random:0#n_last_blocks=2,layer=1", "up to its layer there are 1"),
    ("random:0#n_last_blocks=0", "a number of blocks"),
    ("random:0#feature=cls+projected", "cls\\+pooled, projected"),
    ("random:0#feature=projected", "has no feature 'projected'"),
    ("random:0#layer=5", "no layer 5: it has 1 to 4"), ("webssl:dino-9b", "webssl:dino-7b-518"),
    ("clip", "expected ccd:FOLDER"), ("clip#size=3", "expected ccd:FOLDER"),
    ("timm:vit_tiny_patch17", "could not be loaded.*timm:FOLDER")])
def test_a_wrong_name_says_what_is_right(spec, said):
    with pytest.raises(UserError, match=said): load(spec)

def test_a_tag_of_timm_may_stand_behind_an_at(monkeypatch):
    import timm
    def create_model(name, **_): raise RuntimeError(f"asked for <{name}>")
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UserError, match="asked for <vit_tiny.openai>"): load("timm:vit_tiny@openai")

def test_a_missing_tap_names_those_there_are(saved):
    with pytest.raises(UserError, match="has no feature 'cls'.*patches, pooled, projected"):
        load(f"hf:{saved('siglip')[0]}#feature=cls")
    with pytest.raises(UserError, match="has no feature 'projected'.*cls, patches, pooled"):
        load(f"hf:{saved('dinov2')[0]}#feature=projected")
    with pytest.raises(UserError, match="has no feature 'projected'"):
        load(f"hf:{saved('clip')[0]}#feature=projected,layer=-2")
    with pytest.raises(UserError, match="has no feature 'projected'"):
        load(f"hf:{saved('clip_vision')[0]}").tapped("projected")

def test_a_folder_without_an_image_processor_asks_for_the_rule(tmp_path, saved):
    made("vit").save_pretrained(tmp_path)
    with pytest.raises(UserError,
                       match=r"no preprocessor_config.json.*#resize=crop,size=224.*missing: fit, "
                             r"size, filter, mean, std"):
        load(f"hf:{tmp_path}")
    e = load(f"hf:{tmp_path}#{GIVEN},shorter=40")
    assert e.fit == ImageTransform(32, 40, squash=True) and e.card.mean == e.card.std == (0.5,) * 3
    assert e.card.resize == "both sides to 40 px, bicubic, the middle 32 px cut out"
    with pytest.raises(UserError, match="does not make one square|fit, size, filter"):
        load(f"hf:{saved('siglip2')[0]}")

def test_position_embeddings_are_stretched_only_when_asked(tmp_path, saved):
    model = made("vit")
    model.save_pretrained(tmp_path)
    processor(crop_size=48, size=dict(shortest_edge=48)).save_pretrained(tmp_path)
    with pytest.raises(UserError,
                       match="was trained with position embeddings at 32 px.*makes 48 "
                             "px.*#size=32"):
        load(f"hf:{tmp_path}")
    e, x = load(f"hf:{tmp_path}#size=48"), torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        close(e.vector(x),
              model(normed(e, x), interpolate_pos_encoding=True).last_hidden_state[:, 0])
    assert load(f"hf:{tmp_path}#size=32").fit == ImageTransform(32, 32)
    with pytest.raises(UserError, match="not a multiple of 8"): load(f"hf:{tmp_path}#size=50")
    folder, dino = saved("dinov2") # stretches its own, as DINOv2 does
    e, x = load(f"hf:{folder}#size=48"), torch.rand(2, 3, 48, 48)
    with torch.no_grad(): close(e.vector(x), dino(normed(e, x)).last_hidden_state[:, 0])

def test_a_size_that_patches_do_not_tile_is_fine_where_it_was_learnt(tmp_path):
    # as SO400M, 384 px in patches of 14
    model = alive(hf.SiglipVisionModel(hf.SiglipVisionConfig(**EYE | dict(image_size=36))))
    model.save_pretrained(tmp_path)
    processor(crop_size=36, size=dict(shortest_edge=36)).save_pretrained(tmp_path)
    e, x = load(f"hf:{tmp_path}"), torch.rand(2, 3, 36, 36)
    with torch.no_grad(): close(e.vector(x), model(normed(e, x)).last_hidden_state.mean(1))

def test_a_missing_weight_is_no_random_weight(tmp_path, saved):
    from safetensors.torch import load_file, save_file
    folder, _ = saved("vit")
    for f in folder.iterdir(): (tmp_path / f.name).write_bytes(f.read_bytes())
    weights = load_file(folder / "model.safetensors")
    lost = next(k for k in weights if "intermediate" in k)
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "model.safetensors",
              dict(format="pt"))
    with pytest.raises(UserError, match="has no weights for .*fc1"): load(f"hf:{tmp_path}")

class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ["CCD_BOMB"],)

@pytest.mark.parametrize("kind", ["hf", "timm", "open_clip"])
def test_a_pickle_loads_its_tensors_and_runs_nothing(kind, tmp_path, saved, timm_saved, clip_saved,
                                                     monkeypatch, pixels):
    monkeypatch.setenv("CCD_BOMB", str(tmp_path / "boom"))
    from safetensors.torch import load_file
    folder = dict(hf=saved, timm=timm_saved, open_clip=clip_saved)[kind]("vit")[0]
    safe = next(folder.glob("*.safetensors"))
    for f in folder.iterdir():
        if f != safe and f.is_file(): (tmp_path / f.name).write_bytes(f.read_bytes())
    weights, name = (load_file(safe),
                     dict(hf="pytorch_model.bin", timm="pytorch_model.bin",
                          open_clip="open_clip_pytorch_model.bin")[kind])
    torch.save(weights, tmp_path / name)
    assert torch.equal(load(f"{kind}:{tmp_path}").vector(pixels),
                       load(f"{kind}:{folder}").vector(pixels))
    torch.save(weights | dict(bomb=Bomb()), tmp_path / name)
    with pytest.raises(UserError, match="could not be loaded"): load(f"{kind}:{tmp_path}")
    assert not (tmp_path / "boom").exists()

def test_half_precision_is_asked_for_and_written_down(saved, timm_saved, clip_saved, pixels):
    for spec in (f"hf:{saved('clip')[0]}", f"timm:{timm_saved('vit')[0]}",
                 f"open_clip:{clip_saved('vit')[0]}", "ccd:emoji/clip"):
        full, half = load(spec), load(f"{spec}#precision=bf16")
        x = torch.rand(3, 3, full.card.size, full.card.size)
        a, b = full.vector(x), half.vector(x)
        assert ((full.card.precision, half.card.precision) == ("fp32", "bf16")
                and b.dtype == torch.float32)
        assert not torch.equal(a, b) and nn.functional.cosine_similarity(a, b).min() > 0.99
        assert (half.card.revision == full.card.revision
                and load(spec, precision="bf16").card == half.card)

def test_the_revision_of_a_folder_is_that_of_its_weights(tmp_path, saved):
    folder, model = saved("dinov2")
    one = load(f"hf:{folder}").card.revision
    assert load(f"hf:{folder}#feature=pooled,layer=1").card.revision == one
    with torch.no_grad(): model.layernorm.bias[0] += 1
    model.save_pretrained(tmp_path); processor().save_pretrained(tmp_path)
    with torch.no_grad(): model.layernorm.bias[0] -= 1
    assert load(f"hf:{tmp_path}").card.revision != one

# --- published encoders, on a hub that is a folder

PINNED = PUBLISHED["webssl:dino-300m"].revision
FIRST, SECOND = "a" * 40, "b" * 40

def publish(home, repo, commit, model, **how):
    "Put a model where huggingface_hub keeps what it has fetched; `main` is this commit now."
    at = home / "hub" / f"models--{repo.replace('/', '--')}"
    model.save_pretrained(at / "snapshots" / commit)
    if how: processor(**how).save_pretrained(at / "snapshots" / commit)
    (at / "refs").mkdir(exist_ok=True); (at / "refs/main").write_text(commit)

@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    home = tmp_path_factory.mktemp("hf")
    large = BODY | dict(image_size=224, patch_size=56)
    publish(home, "facebook/webssl-dino300m-full2b-224", PINNED,
            alive(hf.Dinov2Model(hf.Dinov2Config(**large))))
    publish(home, "facebook/webssl-mae1b-full2b-224", FIRST,
            alive(hf.ViTModel(hf.ViTConfig(**large))))
    publish(home, "facebook/webssl-dino7b-full8b-378", PUBLISHED["webssl:dino-7b-378"].revision,
            alive(hf.Dinov2Model(
        hf.Dinov2Config(**large | dict(image_size=392, patch_size=14)))),
            size=dict(height=392, width=392), do_center_crop=False)
    # not what it should be
    publish(home, "Leonardo6/dino-datacomp-12m-16", FIRST, made("clip_vision"),
            size=dict(shortest_edge=SIDE))
    publish(home, "Leonardo6/clip-datacomp-12m-16", SECOND, alive(made("clip_vision")),
            size=dict(shortest_edge=SIDE))
    publish(home, "Leonardo6/clip-datacomp-12m-16", FIRST, made("clip_vision"),
            size=dict(shortest_edge=SIDE))
    return home

@pytest.fixture
def hub(fetched, tmp_path, monkeypatch):
    "No network; the hub's folder; a current folder of its own."
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fetched / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("CCD_LOCK", raising=False)
    monkeypatch.chdir(tmp_path)
    return fetched / "hub"

def test_published_names_load_what_they_name(hub, capsys):
    e = load("webssl:dino-300m")
    assert ((e.card.name, e.card.revision, e.card.license, e.card.training)
            == ("webssl:dino-300m", PINNED, "CC-BY-NC-4.0", "DINOv2, MC-2B"))
    assert (e.card.architecture == "transformers Dinov2Model d32 depth 3 patch 56"
            and np.allclose(e.card.mean, (0.485, 0.456, 0.406)))
    assert e.fit == ImageTransform(224, 256)
    assert (e.card.resize
            == "shorter side to 256 px, bicubic, the middle 224 px cut out (crop: its README; "
               "squash: its demo)")
    assert (capsys.readouterr().err
            == "ccd: webssl:dino-300m: license CC-BY-NC-4.0: no commercial use\n")
    assert load("webssl:dino-300m#resize=squash").fit == ImageTransform(224, squash=True)
    assert "ViTModel" in load("webssl:mae-1b").card.architecture
    # what its repository says
    assert load("webssl:dino-7b-378").fit == ImageTransform(392, 392, squash=True)
    assert load("webssl:dino-7b-378#resize=squash").fit == ImageTransform(378, squash=True)
    capsys.readouterr()
    # by its plain name
    direct = load("hf:facebook/webssl-dino300m-full2b-224@" + PINNED + "#"
                  + GIVEN.replace("32", "224"))
    assert direct.card.license == "CC-BY-NC-4.0" and "no commercial use" in capsys.readouterr().err
    with pytest.raises(UserError,
                       match="should be a ViTModel, but its configuration is of a "
                             "clip_vision_model"):
        load("paper:dino")
    # the others are pinned
    assert read_json("encoders.lock.json") == {PUBLISHED["webssl:mae-1b"].repo: FIRST}

def test_the_commit_of_the_first_load_stays(hub, tmp_path, capsys, monkeypatch):
    e = load("paper:clip")
    assert ((e.card.revision, e.card.license, e.card.tap, e.card.norm)
            == (FIRST, "not stated", "cls", "after the final norm"))
    assert f"revision {FIRST} recorded in encoders.lock.json" in capsys.readouterr().err
    main = hub / "models--Leonardo6--clip-datacomp-12m-16/refs/main"
    main.write_text(SECOND) # its authors go on
    try:
        assert (load("paper:clip").card.revision
                == load("hf:Leonardo6/clip-datacomp-12m-16").card.revision == FIRST)
        assert capsys.readouterr().err == ""
        assert load(f"paper:clip@{SECOND}").card.revision == SECOND
        assert f"has {FIRST}, but {SECOND} is asked for" in capsys.readouterr().err
        assert read_json("encoders.lock.json") == {"Leonardo6/clip-datacomp-12m-16": FIRST}
        monkeypatch.setenv("CCD_LOCK", str(tmp_path / "mine.json"))
        assert load("paper:clip").card.revision == SECOND
        assert read_json(tmp_path / "mine.json") == {"Leonardo6/clip-datacomp-12m-16": SECOND}
    finally: main.write_text(FIRST)

@pytest.mark.parametrize("spec",
                         ["hf:nobody/nothing", "paper:siglip", "webssl:dino-1b",
                          "timm:vit_tiny_patch16_224.augreg_in21k",
                                  "open_clip:ViT-B-16/datacomp_xl_s13b_b90k"])
def test_without_a_network_it_says_what_to_do(spec, hub):
    with pytest.raises(UserError,
                       match="could not be loaded.*give the folder in place of the name"):
        load(spec)

def test_weights_of_the_other_gelu_are_refused(hub, monkeypatch):
    import open_clip
    # nothing to fetch before it is seen
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: None)
    with pytest.raises(UserError, match="try open_clip:ViT-B-32-quickgelu/openai"):
        load("open_clip:ViT-B-32/openai")

def test_published_entries_are_whole():
    assert (sum(k.startswith("paper:") for k in PUBLISHED) == 7
            and len({p.repo for p in PUBLISHED.values()}) == len(PUBLISHED))
    for k, p in PUBLISHED.items():
        assert issubclass(getattr(hf, p.network), hf.PreTrainedModel)
        assert p.revision is None or (len(p.revision) == 40 and int(p.revision, 16))
        assert (not k.startswith("webssl:")
                or (p.license == "CC-BY-NC-4.0" and p.fits["squash"].squash))

def test_importing_loads_no_library_of_models():
    code = ("import sys, ccd.encoders; print([m for m in ('transformers', 'timm', 'open_clip', "
            "'huggingface_hub') if m in sys.modules])")
    p = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                       env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    assert p.stdout.strip() == "[]", p.stdout + p.stderr

def test_old_options_of_an_encoder_name_are_those_of_today():
    from ccd.encoders.names import current_spec, parse_encoder_spec
    old, new = ("hf:x#tap=pooled,norm=before,blocks=2,fit=pad,filter=bicubic,layer=-2",
                "hf:x#feature=pooled,final_norm=false,n_last_blocks=2,resize=pad,interpolation=bicubic,layer=-2")
    assert (current_spec(old) == new == current_spec(new)
            and current_spec("pixels:16") == "pixels:16")
    with pytest.warns(FutureWarning, match="final_norm=false"):
        assert parse_encoder_spec(old) == parse_encoder_spec(new)
