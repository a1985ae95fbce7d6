"""DINOv2 and MAE against second writings of their equations; towers of the published sizes; other
image sizes."""
import math
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
import torch.nn.functional as F
from ccd.data import augment
from ccd.training.audit import audit
from ccd.files import UserError, content_hash, read_json, to_plain_dict
from ccd.settings import Dinov2, ViT, override
from ccd.presets import PRESETS, _WEB_MAE, _WEB_SSL, apply_recipe, preset
from ccd.runs import run_settings
from ccd.training.objectives.distillation import _ibot_loss, _koleo, _sinkhorn
from ccd.training.objectives.masked import _patchify, mae_loss
from ccd.training.objectives.registry import build_objective
from ccd.data.batches import Batch
from ccd.training.towers import _embed_patches, _forward_blocks, build_vit, weights_hash
from ccd.training.trainer import Trainer, on_device
from ccd.training.loop import train
from conftest import outputs

pytestmark = pytest.mark.numeric

RESULTS = Path(__file__).parents[2] / "results"
SHORT = {"control.batch_size": 8, "control.samples": 320, "control.warmup": 0.0}

@pytest.fixture(autouse=True)
def fp32(monkeypatch): monkeypatch.setenv("CCD_PRECISION", "fp32")

def settings(recipe, **changes):
    return override(apply_recipe(recipe, preset("smoke")), **SHORT | changes)

def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def close(a, b, tol=1e-6):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tol, atol=tol,
                               check_dtype=False)

def shown(n=6, size=64, seed=0):
    return Batch(torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)),
                 torch.arange(n), None, None, None)

# --- Sinkhorn

def test_sinkhorn_gives_each_picture_one_answer_and_each_prototype_its_share():
    x = F.normalize(double(24, 6), dim=1)
    q = _sinkhorn(x, 0.1, 200)
    close(q.sum(1), torch.ones(24)); close(q.sum(0), torch.full((6,), 4.0))
    # only rows and columns were scaled: what is left after both are taken out is the same
    start = (x / 0.1).exp()
    def left(z):
        return (z := z.log()) - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
    close(left(q), left(start))

@pytest.mark.parametrize("steps", [1, 3])
def test_sinkhorn_is_that_of_swav(steps):
    x = F.normalize(double(10, 7), dim=1)
    q = torch.exp(x / 0.06).T # Caron et al. (2020): prototypes by samples
    q = q / q.sum()
    for _ in range(steps):
        for k in range(7): q[k] = q[k] / q[k].sum() / 7
        for i in range(10): q[:, i] = q[:, i] / q[:, i].sum() / 10
    close(_sinkhorn(x, 0.06, steps), (q * 10).T)

def test_sinkhorn_of_nothing_and_of_one():
    assert _sinkhorn(torch.empty(0, 5), 0.04).shape == (0, 5)
    close(_sinkhorn(F.normalize(double(1, 5), dim=1), 0.04).sum(), 1.0)
    assert torch.isfinite(_sinkhorn(F.normalize(torch.randn(9, 5), dim=1), 0.01)).all()

# --- KoLeo, patches

def plain_koleo(x):
    u = [v / v.pow(2).sum().sqrt() for v in x]
    return -sum(math.log(min((u[i] - u[j]).pow(2).sum().sqrt() for j in range(len(u)) if j != i))
                for i in range(len(u))) / len(u)

def test_koleo_is_minus_the_mean_log_distance():
    x = double(9, 4)
    close(_koleo(x), plain_koleo(x))

def test_koleo_parts_the_nearest_and_leaves_the_length():
    x = double(12, 5).requires_grad_()
    g = torch.autograd.grad(_koleo(x), x)[0]
    close((g * x).sum(1), torch.zeros(12))
    def least(x):
        return torch.pdist(F.normalize(x, dim=1)).min()
    assert least(x - 1e-3 * g) > least(x)
    # copies
    assert torch.isfinite(torch.autograd.grad(_koleo(y := torch.ones(3, 2, requires_grad=True)),
                                              y)[0]).all()

def test_patch_loss_takes_crops_alike():
    hidden = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    p, log_q = double(3, 4, 5).softmax(-1), double(3, 4, 5, seed=1).log_softmax(-1)
    share = (1 / hidden.sum(1, keepdim=True).clamp(min=1)).expand(3, 4)[hidden]
    by_crop = [sum(-(p[i, m] * log_q[i, m]).sum()
                   for m in range(4) if hidden[i, m]) / max(int(hidden[i].sum()), 1)
               for i in range(3)]
    close(_ibot_loss(p[hidden], log_q[hidden], share, 3), sum(by_crop) / 3)

# --- the whole of DINOv2, a crop at a time

def plain_dinov2(m, batch, t):
    d, temp = m.d, m.teacher_temp(t)
    hidden = batch["hidden"]
    n, students, teachers, tokens, asked = len(hidden), [], [], [], []
    for x in (x for group in batch["crops"] for x in group.unbind(1)):
        v = len(students)
        h = m.vision.patch_embed(x).flatten(1, 2)
        if v < 2:
            h = torch.stack([torch.stack([m.mask_token if gone else own for gone, own in zip(*row)])
                             for row in zip(hidden[:, v], h)])
        side = math.isqrt(h.shape[1])
        h = (torch.cat([m.vision.cls_token.expand(n, -1, -1), h], 1)
             + resample_abs_pos_embed(m.vision.pos_embed, [side, side]))
        h = m.vision.norm(m.vision.blocks(h))
        students.append((m.head(h[:, 0]) / d.student_temp).log_softmax(1))
        if v < 2:
            tokens.append(h[:, 0])
            with torch.no_grad(): their = m.teacher_vision.forward_features(x)
            teachers.append(m.teacher_head(their[:, 0]))
            for i in range(n):
                places = [k for k in range(hidden.shape[2]) if hidden[i, v, k]]
                for k in places:
                    asked.append(((m.heads()[0](h[i, 1 + k]) / d.student_temp).log_softmax(0),
                                  m.heads()[1](their[i, 1 + k]), 1 / len(places)))
    if d.centering == "sinkhorn":
        p = _sinkhorn(torch.cat(teachers), temp, d.sinkhorn_steps).chunk(2)
    else: p = [((x - m.center) / temp).softmax(1) for x in teachers]
    pairs = [(i, j) for i in range(2) for j in range(len(students)) if i != j]
    cls = sum(-(p[i] * students[j]).sum(1).mean() for i, j in pairs) / len(pairs)
    wanted = torch.stack([w for _, w, _ in asked])
    q = (_sinkhorn(wanted, temp, d.sinkhorn_steps) if d.centering == "sinkhorn"
         else ((wanted - m.patch_center) / temp).softmax(1))
    patch = sum(-(a * b).sum() * s for a, (b, _, s) in zip(q, asked)) / (2 * n)
    return (cls + d.patch_weight * patch
            + d.koleo * sum(plain_koleo(x.double().detach()) for x in tokens))

@pytest.mark.parametrize("changes", [{}, {"dinov2.shared_head": True, "dinov2.centering": "mean"},
                                     {"dinov2.local_crops": 0, "dinov2.patch_weight": 0.5,
                                      "dinov2.mask_probability": 1.0}])
def test_dinov2_is_its_equations(changes):
    m = build_objective("dinov2", settings("dinov2", **changes)).double().eval()
    m.mask_token.data.normal_(); m.center.normal_(std=0.1); m.patch_center.normal_(std=0.1)
    m.teacher_vision.pos_embed.data += 0.1 * double(*m.teacher_vision.pos_embed.shape)
    batch = m.batch(shown())
    batch["crops"] = [x.double() for x in batch["crops"]]
    assert batch["hidden"].any()
    for h in (m.head, m.teacher_head, *m.heads()): # as they are, in double precision
        h.forward = lambda x, h=h: F.normalize(h.mlp(x),
                                               dim=-1) @ F.normalize(h.prototypes, dim=-1).T
    encoded = m.encode(batch, 0.5)
    encoded["cls"] = _forward_blocks(m.vision,
                                     _embed_patches(m.vision, batch["crops"][0].flatten(0, 1),
                                                    batch["hidden"].flatten(0, 1),
                                                   m.mask_token))[:, 0].view(6, 2, -1)
    close(m.loss(encoded, 0.5)[0].detach(), plain_dinov2(m, batch, 0.5).detach())

def test_centres_follow_both_kinds_of_answers(corpus):
    m = build_objective("dinov2",
                        settings("dinov2",
                                 **{"dinov2.centering": "mean", "dinov2.center_momentum": 0.75}))
    batch = m.batch(shown())
    e = m.encode(batch, 0.0)
    m.loss(e, 0.0); m.after_step(0.0)
    close(m.center, 0.25 * e["teacher"].mean((0, 1)))
    close(m.patch_center, 0.25 * e["wanted"].mean(0))
    m.loss(m.encode(batch | dict(hidden=torch.zeros_like(batch["hidden"])), 0.0), 0.0)
    m.after_step(0.0)
    close(m.patch_center, 0.25 * e["wanted"].mean(0))

@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_a_centre_is_logged_where_there_is_one(centering):
    m = build_objective("dinov2", settings("dinov2", **{"dinov2.centering": centering}))
    m.loss(m.encode(m.batch(shown()), 0.0), 0.0)
    assert {"teacher_entropy", "mean_entropy", "feature_rank"} <= m.health().keys()
    assert ("center_norm" in m.health()) == (centering == "mean")

def test_the_teacher_sees_what_the_student_does_not():
    m = build_objective("dinov2", settings("dinov2", **{"dinov2.mask_probability": 1.0}))
    batch = m.batch(shown())
    blank = batch["crops"][0].clone() # paint over the hidden patches
    grid = batch["hidden"].view(6, 2, 1, 4, 4).repeat_interleave(12, 3).repeat_interleave(12, 4)
    other = batch | dict(crops=[torch.where(grid, -blank, blank), batch["crops"][1]])
    a, b = m.encode(batch, 0.0), m.encode(other, 0.0)
    for k in ("student", "patches", "cls"): close(a[k], b[k], 1e-5)
    for k in ("teacher", "wanted"): assert (a[k] - b[k]).abs().max() > 1e-3

# --- masks

@pytest.mark.parametrize("side", [4, 7, 16])
def test_blocks_hide_the_share_asked_for(side):
    n, N = 2000, side * side
    m = augment.block_mask(0, torch.arange(n), 0, side, 0.5, (0.1, 0.5))
    count = m.sum(1)
    assert 0.46 < (count > 0).float().mean() < 0.54
    hidden = count[count > 0] / N
    assert hidden.min() >= 0.1 - 0.51 / N and hidden.max() <= 0.5 + 0.51 / N
    close(hidden.mean(), 0.3, 0.02)
    exact = augment.block_mask(0, torch.arange(50), 0, side, 1.0, (0.25, 0.25))
    assert (exact.sum(1) == round(N / 4)).all()

def neighbours(m): # of hidden patches, how many of the right and lower neighbours are hidden too
    return ((m[:, 1:] & m[:, :-1]).sum() + (m[:, :, 1:] & m[:, :, :-1]).sum()) / m.sum()

def test_blocks_are_blocks_and_cover_every_place():
    m = augment.block_mask(0, torch.arange(3000), 0, 8, 1.0, (0.3, 0.3)).view(-1, 8, 8)
    anywhere = augment.random_mask(0, torch.arange(3000), 64, int(m[0].sum()) / 64).view(-1, 8, 8)
    assert m[0].sum() == anywhere[0].sum() and neighbours(m) > 2 * neighbours(anywhere)
    often = m.float().mean(0)
    assert often.min() > 0.04 and often.max() < 0.6
    for other in (often.flip(0), often.flip(1), often.T): assert (often - other).abs().max() < 0.05

def test_masks_belong_to_a_sample_and_a_view():
    def draw(samples, view=0, seed=3):
        return augment.block_mask(seed, torch.tensor(samples), view, 8, 1.0, (0.1, 0.5))
    assert torch.equal(draw([5, 6, 9])[2], draw([9])[0])
    assert not torch.equal(draw([5]), draw([5], 1)) and not torch.equal(draw([5]), draw([5], 0, 4))

def test_settings_that_hide_nothing_possible_are_refused():
    with pytest.raises(UserError, match="expected shares"): Dinov2(mask_ratio=(0.5, 0.1))
    with pytest.raises(UserError, match="expected shares"): Dinov2(mask_probability=1.5)

# --- MAE

def test_mae_loss_is_its_equation_and_ignores_what_is_seen():
    painted, patches, hidden = double(3, 6, 8), 2 + double(3, 6, 8, seed=1), torch.rand(3, 6) < 0.6
    hidden[0, 0], hidden[1, 1] = True, False
    rows = [(painted[i, k],
             (patches[i, k] - patches[i, k].mean()) / (patches[i, k].var() + 1e-6).sqrt())
            for i in range(3) for k in range(6) if hidden[i, k]]
    close(mae_loss(painted, patches, hidden), sum(((a - b)**2).mean() for a, b in rows) / len(rows))
    other = torch.where(hidden[..., None], painted, painted + 5)
    close(mae_loss(other, patches, hidden), mae_loss(painted, patches, hidden))
    close(mae_loss(painted, patches, hidden, False), (painted - patches)[hidden].square().mean())

def test_mae_encodes_what_is_seen_and_nothing_else():
    m = build_objective("mae", settings("mae"))
    batch = m.batch(shown())
    assert (batch["hidden"].sum(1) == 12).all()
    grid = batch["hidden"].view(6, 1, 4, 4).repeat_interleave(12, 2).repeat_interleave(12, 3)
    a, b = (m.encode(batch | dict(image=x), 0.0)
            for x in (batch["image"], torch.where(grid, 7.0, batch["image"])))
    close(a["predicted"], b["predicted"], 1e-5)
    assert (a["patches"] - b["patches"]).abs().sum(2).gt(0).eq(batch["hidden"]).all()
    # the encoder's tokens, picture by picture
    lengths = []
    m.vision.norm.register_forward_hook(lambda _, x, y: lengths.append(y.shape[1]))
    m.encode(batch, 0.0)
    assert lengths == [1 + 16 - 12]

def test_painted_patches_stand_where_they_belong():
    m = build_objective("mae", settings("mae"))
    batch = m.batch(shown())
    x = m.narrow(_forward_blocks(m.vision,
                                 torch.cat([(h := _embed_patches(m.vision, batch["image"]))[:1, :1],
                                              h[:1, 1:][:, ~batch["hidden"][0]]], 1)))
    row, seen = m.mask_token.expand(1, 16, -1).clone(), x[:, 1:]
    row[:, ~batch["hidden"][0]] = seen
    out = _forward_blocks(m.decoder, torch.cat([x[:, :1], row], 1) + m.decoder.pos_embed)
    close(m.encode(batch, 0.0)["predicted"][:1], m.paint(out[:, 1:]), 1e-5)

def test_patches_are_squares_of_the_picture():
    x = torch.rand(2, 3, 24, 24)
    p = _patchify(x, 8)
    assert p.shape == (2, 9, 192)
    close(p[1, 5], x[1, :, 8:16, 16:24].permute(1, 2, 0).flatten(), 0)

# --- training

@pytest.mark.parametrize("recipe, lr", [("dinov2", 1e-3), ("mae", 2e-3)])
def test_some_steps_lower_the_loss(corpus, recipe, lr):
    t = Trainer(recipe, settings(recipe, **{"control.lr": lr, "dinov2.freeze_last_layer": 0.0}),
                corpus)
    batch, first = t.feed(0), None
    for k in range(25):
        loss, facts = t.step(k, batch) # one batch, again and again
        assert math.isfinite(loss)
        first = first or float(loss)
    assert float(loss) < 0.8 * first
    if recipe == "dinov2": assert t.model.health()["mean_entropy"] > 0.9

@pytest.mark.parametrize("recipe", ["dinov2", "mae"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(corpus, recipe):
    found = []
    for micro in (0, 1, 3):
        t = Trainer(recipe,
                    settings(recipe, **{"runtime.micro_batch": micro, "dinov2.centering": "mean"}),
                    corpus)
        loss, _ = t._gradients(t.model.batch(on_device(t.feed(3))), 0.5, 3)
        t.model.after_step(0.5)
        found.append({k: p.grad for k, p in t.model.named_parameters() if p.requires_grad}
                     | dict(t.model.named_buffers()) | dict(loss=loss))
    for parts in found[1:]:
        for k, g in found[0].items(): assert (parts[k] - g).abs().max() <= 2e-5 * g.abs().max(), k
    assert all(g.abs().max() > 0 for k, g in found[0].items())

class Killed(BaseException): pass

@pytest.mark.parametrize("recipe", ["dinov2", "mae"])
def test_resume_is_bit_identical(corpus, tmp_path, recipe):
    s = settings(recipe, **{"control.samples": 48, "runtime.checkpoint_minutes": 0.0})
    train(recipe, s, corpus, tmp_path / "whole")
    def hook(step, model):
        if step == 4: raise Killed
    with pytest.raises(Killed): train(recipe, s, corpus, tmp_path / "run", hook)
    train(recipe, s, corpus, tmp_path / "run")
    assert outputs(tmp_path / "run") == outputs(tmp_path / "whole")

# --- networks

# billions, Web-SSL's checkpoints
PARAMETERS = {"300m": 0.304, "1b": 1.135, "2b": 2.084, "3b": 2.948, "5b": 4.938, "7b": 6.450}

def by_hand(v): # the weights of a ViT with SwiGLU and LayerScale, one table after the other
    d, h, n = v.width, (4 * v.width * 2 // 3 + 7) // 8 * 8, (v.image_size // v.patch_size)**2
    block = (d * 3 * d + 3 * d) + (d * d + d) + (d * 2 * h + 2 * h) + (h * d + d) + 4 * d + 2 * d
    return (3 * v.patch_size**2 * d + d) + d + (n + 1) * d + v.depth * block + 2 * d

@pytest.mark.parametrize("name", _WEB_SSL)
def test_web_ssl_has_the_published_parameters(name):
    v = _WEB_SSL[name]
    with torch.device("meta"): n = sum(p.numel() for p in build_vit(v).parameters())
    assert n == by_hand(v) and round(n / 1e9, 3) == PARAMETERS[name]
    ssl, clip = preset(f"web-ssl-{name}"), preset(f"web-clip-{name}")
    assert ssl.control.vit == v and clip.control.vit == override(v, drop_path=0.0)
    assert (ssl.control.samples == clip.control.samples
            and (ssl.control.batch_size, clip.control.batch_size) == (3072, 32768))

@pytest.mark.parametrize("name", _WEB_MAE)
def test_web_mae_has_the_parameters_of_its_name(name):
    s = preset(f"web-mae-{name}")
    v, n = s.control.vit, float(name[:-1]) / (1_000 if name.endswith("m") else 1)
    with torch.device("meta"): net = build_vit(v)
    d = v.width
    # attention, feed-forward, norms
    block = 3 * d * d + 3 * d + d * d + d + 8 * d * d + 5 * d + 4 * d
    patches = (v.image_size // v.patch_size)**2
    total = 3 * v.patch_size**2 * d + d + d + (patches + 1) * d + v.depth * block + 2 * d
    assert sum(p.numel() for p in net.parameters()) == total and abs(total / 1e9 / n - 1) < 0.15
    assert (s.mae.width == 512 and s.control.batch_size == 4096
            and s.control.steps * s.control.warmup == pytest.approx(80_000, rel=1e-3))

@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_train_both_kinds_of_self_supervision(name):
    s = apply_recipe("dinov2", preset(name))
    s.dinov2.check(s.control.vit), s.dino.check(s.control.vit)
    assert s.dinov2.out_dim == (131072 if name.startswith("web-ssl") else s.dino.out_dim)
    assert apply_recipe("dinov2", s) == s

def test_swiglu_is_its_equation():
    v = ViT(width=24, depth=1, heads=2, ffn="swiglu", layer_scale=0.5)
    block = build_vit(v).double().blocks[0]
    x, f = double(2, 5, 24), block.mlp
    a, b = F.linear(x, f.fc1.weight, f.fc1.bias).chunk(2, -1)
    assert a.shape[-1] == 64 # 4 x 24 x 2 / 3
    close(f(x), F.linear(a * torch.sigmoid(a) * b, f.fc2.weight, f.fc2.bias))
    close(block.ls1(x), 0.5 * x)
    assert (weights_hash(build_vit(ViT()))
            == weights_hash(build_vit(ViT(ffn="mlp", layer_scale=0.0))))
    with pytest.raises(UserError, match="expected mlp or swiglu"): ViT(ffn="glu")

RELEASED = [f"dino{n}-full2b-224"
            for n in ("300m", "1b", "2b", "3b",
                      "5b")] + [f"dino7b-full8b-{n}" for n in (224, 378, 518)] + [
    f"dino{n}-{data}2b-224" for n in ("2b", "3b")
    for data in ("light", "heavy")] + ["dino300m-light2b-224"] + [
    # its README, and its collection on the hub
    f"mae{n}-full2b-224" for n in ("300m", "700m", "1b", "2b", "3b")]

def test_every_release_of_web_ssl_has_a_name_and_its_ways_of_making_pixels():
    from ccd.encoders.names import PUBLISHED
    ours = {p.repo.removeprefix("facebook/webssl-"): p
            for k, p in PUBLISHED.items() if k.startswith("webssl:")}
    assert sorted(ours) == sorted(RELEASED)
    for name, p in ours.items():
        size = int(name.rpartition("-")[2])
        assert p.fits["squash"].squash and {f.size for f in p.fits.values()} == {size}
        assert (("crop" in p.fits) == (size == 224)
                and p.network == ("ViTModel" if "mae" in name else "Dinov2Model"))
        assert size > 224 or (p.fits["crop"].shorter, p.fits["crop"].filter) == (256, "bicubic")

# --- other image sizes

LARGER = {"control.vit.image_size": 72}

@pytest.fixture(scope="module")
def first_run(corpus, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CCD_PRECISION", "fp32")
        return train("dinov2", settings("dinov2", **{"control.samples": 16}), corpus,
                     tmp_path_factory.mktemp("first") / "run")

def test_a_run_begins_with_another_at_a_larger_size(corpus, first_run, tmp_path):
    s = settings("dinov2", **LARGER, **{"control.samples": 16, "control.warmup": 0.5})
    kept = load_file(max(first_run.glob("checkpoints/step-*")) / "model.safetensors")
    t = Trainer("dinov2", s, corpus, init_from=first_run)
    own = dict([*t.model.named_parameters(), *t.model.named_buffers()])
    assert own.keys() == kept.keys()
    for k, x in own.items():
        assert torch.equal(x,
                           kept[k] if x.shape == kept[k].shape
                           else resample_abs_pos_embed(kept[k], [6, 6])), k
    # student's and teacher's places
    assert sum(x.shape != kept[k].shape for k, x in own.items()) == 2
    run = train("dinov2", s, corpus, tmp_path / "run", init_from=first_run)
    m = read_json(run / "manifest.json")
    assert (m["settings"]["start"]
            == dict(run=read_json(first_run / "manifest.json")["outputs_hash"], samples=16,
                    image_size=48))
    assert "after 16 samples at 48 px" in read_json(run / "encoder.json")["training"]
    sheet = audit(run, first_run).set_index("setting")
    assert not sheet.equal[["started from", "architecture", "first weights of the ViT"]].any()
    train("dinov2", s, corpus, run, init_from=first_run) # it is up to date
    with pytest.raises(UserError, match="other settings.*start"): train("dinov2", s, corpus, run)

@pytest.mark.parametrize("name, changes, said", [
    ("dinov2", {"control.vit.width": 24}, "a different network: width was 48, is now 24"),
    ("dinov2", {"control.vit.ffn": "swiglu"}, "a different network: ffn was mlp, is now swiglu"),
    ("dinov2", {"dinov2.out_dim": 32}, r"other settings: center is 64 there, 32 here \(6 differ\)"),
    ("dinov2", {"dinov2.shared_head": True},
     "other settings: patch_head.mlp.0.bias is 64 there, missing here"),
    ("dino", {}, "is a run of dinov2, and dino cannot start from it")])
def test_a_run_of_something_else_is_no_beginning(corpus, first_run, tmp_path, name, changes, said):
    with pytest.raises(UserError, match=said):
        train(name, settings("dinov2", **changes), corpus, tmp_path / "run", init_from=first_run)
    assert not (tmp_path / "run/settings.json").exists()

def test_a_release_or_a_folder_is_no_beginning(corpus, tmp_path):
    with pytest.raises(UserError, match="not a finished run"):
        train("dinov2", settings("dinov2"), corpus, tmp_path / "run", init_from=tmp_path)
    s = settings("clip",
                 **{f"control.vit.{k}": v
                    for k, v in to_plain_dict(preset("mini").control.vit).items()})
    with pytest.raises(UserError, match="a release brings the encoder alone"):
        train("clip", s, corpus, tmp_path / "run",
              init_from=RESULTS / "emoji-small/encoders/clip-0")

def test_the_audit_knows_what_dinov2_publishes(first_run):
    t = audit(first_run, "dinov2").set_index("setting")
    assert ("ffn swiglu" in t.B["architecture"] and t.equal["weights evaluated"]
            and not t.equal["batch"])
    assert t.B["warm-up"] == "16 % of training" and "8 more of 0.05 to 0.32" in t.B["augmentation"]

# --- settings that came later

def test_results_from_before_keep_their_names():
    made = {n: read_json(RESULTS / f"emoji-small/encoders/{n}-0/manifest.json")["settings_hash"]
            for n in ("clip", "dino")}
    now = preset("emoji-small")
    # what it was before it was a setting
    before = override(now, **{"dino.head_init": "trunc_normal"})
    assert made == {n: content_hash(run_settings(n, before)) for n in made}
    assert (made["clip"] == content_hash(run_settings("clip", now))
            and made["dino"] != content_hash(run_settings("dino", now)))
    assert "dinov2" not in to_plain_dict(preset("paper"))
    assert ("ffn" not in to_plain_dict(ViT())
            and to_plain_dict(ViT(ffn="swiglu", layer_scale=1e-5))["ffn"] == "swiglu")
