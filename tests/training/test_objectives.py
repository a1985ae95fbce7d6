"""Losses against open_clip's, DINO against a second writing of the paper, gradients of parts
against those of the whole."""
import math
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from ccd.data import augment
from ccd.training.objectives import contrastive
from ccd.files import UserError, content_hash, to_plain_dict
from ccd.settings import Settings, ViT, from_plain_dict, override
from ccd.presets import apply_recipe, preset
from ccd.runs import run_settings
from ccd.training.objectives.contrastive import clip_loss, siglip_loss
from ccd.training.objectives.registry import build_objective
from ccd.training.towers import build_vit, weights_hash
from ccd.data.corpora import open_corpus
from ccd.training.trainer import Trainer, on_device
from ccd.training.loop import train

pytestmark = pytest.mark.numeric

SHORT = {"control.samples": 160, "control.batch_size": 8, "control.warmup": 0.0}

@pytest.fixture(autouse=True)
def fp32(monkeypatch): monkeypatch.setenv("CCD_PRECISION", "fp32")

@pytest.fixture(scope="module")
def corpus(): return open_corpus(preset("smoke").data).corpus

def settings(recipe="clip", **changes):
    return override(apply_recipe(recipe, preset("smoke")), **SHORT | changes)

def trained(objective, corpus, of, steps, watch=lambda t, k: None):
    t = Trainer(objective, of, corpus)
    for k in range(steps):
        assert math.isfinite(t.step(k, t.feed(k))[0])
        watch(t, k)
    return t

def unit(n, e, seed): # rows of length 1, near enough to one another for the loss not to vanish
    x = torch.randn(n, e, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x + 1, dim=1).requires_grad_()

def close(a, b, rtol=1e-6, atol=1e-6): torch.testing.assert_close(a, b, rtol=rtol, atol=atol)

# --- the losses

@pytest.mark.parametrize("n, e, chunk",
                         [(2, 3, 1), (7, 5, 3), (33, 8, 32), (64, 16, 10), (12, 4, 1024)])
def test_losses_are_those_of_open_clip(n, e, chunk):
    from open_clip.loss import ClipLoss, SigLipLoss
    u, v, s, b = (unit(n, e, 0), unit(n, e, 1), torch.tensor(9.0, requires_grad=True),
                  torch.tensor(-4.0, requires_grad=True))
    for ours, theirs, x in ((clip_loss(u, v, s), ClipLoss()(u, v, s), (u, v, s)),
                            (siglip_loss(u, v, s, b, chunk), SigLipLoss()(u, v, s, b),
                             (u, v, s, b))):
        close(ours, theirs)
        close(*(torch.autograd.grad(3 * y, x) for y in (ours, theirs)))

def test_the_scale_is_kept_below_its_bound(corpus):
    t = Trainer("clip", settings(**{"clip.max_scale": 20.0}), corpus)
    t.model.logit_scale.data.fill_(5.0)
    t.step(0, t.feed(0))
    close(t.model.logit_scale.data.exp(), torch.tensor([20.0]))

def test_the_classifier_ignores_pictures_without_a_label(corpus):
    t = Trainer("supervised", settings(), corpus)
    m, batch = t.model, t.model.batch(on_device(t.feed(0)))
    batch["image"].requires_grad_()
    known = torch.arange(8) % 3 > 0
    batch["label"] = torch.where(known, torch.arange(8), -100)
    loss = m(batch, 0.5)[0]
    close(loss, F.cross_entropy(m.head(m.vision(batch["image"][known])), batch["label"][known]))
    moved = torch.autograd.grad(loss, batch["image"])[0].flatten(1).abs().sum(1) > 0
    assert (moved == known).all()
    assert m(batch | dict(label=torch.full((8,), -100)), 0.5)[0] == 0

# --- DINO, once more

class Head(nn.Module):
    "Caron et al. (2021), appendix C, with torch's weight normalisation, all lengths 1."
    def __init__(self, d, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, d.hidden), nn.GELU(),
                                 nn.Linear(d.hidden, d.hidden), nn.GELU(),
                                 nn.Linear(d.hidden, d.bottleneck))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(d.bottleneck, d.out_dim,
                                                                    bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, x):
        x = self.mlp(x)
        return self.last(x / x.norm(dim=1, keepdim=True))

    def load(self, head):
        self.mlp.load_state_dict(head.mlp.state_dict())
        self.last.parametrizations.weight.original1.data.copy_(head.prototypes)
        return self

class Dino(nn.Module):
    "Algorithm 1 of the paper, a step at a time, with AdamW and the schedules of the settings."
    def __init__(self, s, student, teacher):
        super().__init__()
        d, c = s.dino, s.control
        self.d, self.c, self.center = d, c, np.zeros(d.out_dim)
        self.nets = nn.ModuleList([nn.ModuleList([v, Head(d, c.vit.width).load(h)])
                                   for v, h in (student, teacher)])
        self.student, self.teacher = self.nets
        own = list(self.student.parameters())
        self.adam = torch.optim.AdamW([dict(params=[p for p in own if p.ndim > 1], decay=True),
                                       dict(params=[p for p in own if p.ndim < 2], decay=False)],
                                      betas=c.betas)

    def step(self, k, crops):
        d, c, t, run = self.d, self.c, k / self.c.steps, lambda net, x: net[1](net[0](x))
        temp = (d.warmup_teacher_temp
                + min(1, t / d.teacher_temp_warmup) * (d.teacher_temp - d.warmup_teacher_temp))
        with torch.no_grad(): answers = [run(self.teacher, x) for x in crops[:2]]
        loss, pairs = 0, 0
        for j, x in enumerate(crops):
            q = F.log_softmax(run(self.student, x) / d.student_temp, 1)
            for i, y in enumerate(answers):
                if i == j: continue
                z = np.exp((y.numpy() - self.center) / temp)
                p = torch.tensor(z / z.sum(1, keepdims=True), dtype=torch.float32)
                loss, pairs = loss - (p * q).sum(1).mean(), pairs + 1
        loss = loss / pairs
        self.adam.zero_grad()
        loss.backward()
        if t < d.freeze_last_layer:
            self.student[1].last.parametrizations.weight.original1.grad = None
        nn.utils.clip_grad_norm_(self.student.parameters(), c.grad_clip)
        def half(a, b):
            return b + (a - b) * 0.5 * (1 + np.cos(np.pi * t))
        for g in self.adam.param_groups:
            g["lr"] = half(c.lr, c.final_lr)
            g["weight_decay"] = half(c.weight_decay, c.final_weight_decay) if g["decay"] else 0.0
        self.adam.step()
        self.center = (d.center_momentum * self.center
                       + (1 - d.center_momentum) * np.concatenate(answers).mean(0))
        m = half(d.momentum, 1.0)
        for p, q in zip(self.teacher.parameters(), self.student.parameters()):
            p.data = m * p.data + (1 - m) * q.data
        return loss.item()

def same_but_key_bias(ours, theirs): # a key's bias adds the same to all scores of a query: its gradient is noise  # noqa: E501
    for (name, a), b in zip(ours.items(), theirs.values(), strict=True):
        if name.endswith("qkv.bias"):
            a, b = (torch.cat([x.chunk(3)[i] for i in (0, 2)]) for x in (a, b))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=lambda m: f"{name}: {m}")

def test_three_steps_of_dino_are_those_of_the_paper(corpus):
    s = settings("dino", **{"dino.warmup_teacher_temp": 0.07, "control.final_weight_decay": 0.4,
                            "dino.momentum": 0.9, "control.lr": 1e-4})
    t, other = Trainer("dino", s, corpus), build_objective("dino", s)
    plain = Dino(s, (other.vision, other.head), (other.teacher_vision, other.teacher_head)).eval()
    before = other.teacher_head.prototypes.clone()
    for k in range(3):
        shown = t.feed(k)
        crops = [x for part in t.model.batch(on_device(shown)) for x in part.unbind(1)]
        assert len(crops) == 4
        close(float(t.step(k, shown)[0]), plain.step(k, crops))
    close(t.model.center, torch.tensor(plain.center, dtype=torch.float32))
    for ours, theirs in ((t.model.vision, plain.student[0]),
                         (t.model.teacher_vision, plain.teacher[0]),
                         (t.model.head.mlp, plain.student[1].mlp),
                         (t.model.teacher_head.mlp, plain.teacher[1].mlp)):
        same_but_key_bias(ours.state_dict(), theirs.state_dict())
    last = plain.teacher[1].last.parametrizations.weight.original1
    close(t.model.teacher_head.prototypes.data, last.data)
    assert (last - before).abs().max() > 1e-5 and t.model.center.abs().max() > 1e-4

def test_dino_learns_from_light_views_alone(corpus):
    t = trained("dino", corpus, s := settings("dino-light-views"), 4)
    globals_, = t.model.batch(on_device(t.feed(0)))
    assert (globals_.shape[1] == 2 == t.model.views_per_sample["student"]
            and not torch.equal(globals_[:, 0], globals_[:, 1]))
    shown, c = on_device(t.feed(0)), s.control
    close(globals_[:, 1],
          augment.normalize(augment._crop(shown.images, augment._random_resized_crop_box(
        augment._counter_uniform(c.seed, shown.sample, 17, 4), s.data.size, c.base_crop),
                                          c.vit.image_size), c))
    assert not torch.equal(t.model.vision.cls_token, build_objective("dino", s).vision.cls_token)

# --- the arms of CLIP

def test_views_of_dino_take_turns(corpus):
    t = Trainer("clip", s := settings("clip-dino-views"), corpus)
    shown = on_device(t.feed(1))
    both = [augment.normalize(augment.dino_view(shown.images, shown.sample, v, s.control, s.dino,
                                                shown.may_flip), s.control)
            for v in (0, 1)]
    for i, x in enumerate(t.model.batch(shown)["image"]):
        v = int(shown.sample[i]) % 2
        close(x, both[v][i]); assert (x - both[1 - v][i]).abs().max() > 0.1

def test_the_averaged_encoder_is_the_average(corpus):
    s = settings("clip-dino-views", **{"clip.ema": 0.8})
    first = build_objective("clip", s)
    def now(m):
        return m.vision.state_dict() | {"projection.weight": m.projection.weight}
    mean = {k: v.detach().clone() for k, v in now(first).items()}
    def watch(t, k):
        m = 1 - (1 - 0.8) * (math.cos(math.pi * k / s.control.steps) + 1) / 2
        for n, v in now(t.model).items(): mean[n] = m * mean[n] + (1 - m) * v.detach()
    t = trained("clip", corpus, s, 5, watch)
    assert t.model.evaluated == "moving average" and t.model.encoder_state().keys() == mean.keys()
    for n, v in t.model.encoder_state().items(): close(v.detach(), mean[n], rtol=0)
    assert not torch.allclose(mean["cls_token"], t.model.vision.cls_token, atol=1e-4)

# --- a batch in parts

def gradients(objective, corpus, of):
    t = Trainer(objective, of, corpus)
    # at -10 its gradient is nearly constant
    if objective == "siglip":
        t.model.logit_bias.data.fill_(-2.0)
    loss, _ = t._gradients(t.model.batch(on_device(t.feed(3))), 0.5, 3)
    t.model.after_step(0.5)
    found = ({k: p.grad for k, p in t.model.named_parameters() if p.grad is not None}
             | dict(loss=loss))
    return found | ({"center": t.model.center} if objective == "dino" else {})

@pytest.mark.parametrize("recipe", ["clip", "siglip", "dino", "supervised", "clip-dino-views",
                                    "infonce"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(corpus, recipe):
    name = "clip" if recipe == "clip-dino-views" else recipe
    whole = gradients(name, corpus, settings(recipe))
    assert {"clip": "logit_scale", "siglip": "logit_bias",
            "dino": "center"}.get(name, "loss") in whole
    for micro in (1, 3):
        parts = gradients(name, corpus, settings(recipe, **{"runtime.micro_batch": micro}))
        assert parts.keys() == whole.keys()
        for k, g in whole.items():
            assert (parts[k] - g).abs().max() <= 1e-5 * g.abs().max(), (micro, k)
            assert g.abs().max() > 0, k

# --- what cannot be trained

@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_no_number_stops_the_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive, "clip_loss",
                        lambda u, v, s: (u.sum() + v.sum()) * s * math.nan)
    with pytest.raises(UserError,
                       match=r"the loss of CLIP is nan: lower control.lr \(now 0.0005\)"):
        train("clip", settings(**{"runtime.checkpoint_minutes": 0.0}), corpus, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*")) and not (tmp_path / "manifest.json").exists()

@pytest.mark.parametrize("objective, of", [("dino", "head"), ("dinov2", "patch_head")])
def test_prototypes_start_as_long_as_those_of_the_reference(objective, of):
    """facebookresearch/dino leaves `last_layer` as nn.Linear starts; encoders from before this was
    a setting started shorter."""
    s = override(preset("mini"), **{f"{objective}.bottleneck": 64, f"{objective}.out_dim": 512})
    def length(s):
        return getattr(build_objective(objective, s), of).prototypes.norm(dim=1).mean().item()
    torch.manual_seed(0)
    reference = nn.Linear(64, 512, bias=False).weight.norm(dim=1).mean().item()
    assert length(s) == pytest.approx(reference, rel=0.02)
    assert (length(override(s, **{f"{objective}.head_init": "trunc_normal"}))
            == pytest.approx(0.02 * 8, rel=0.02))

def test_settings_from_before_a_field_read_as_what_they_were():
    new = to_plain_dict(preset("mini"))
    assert new["dino"].pop("head_init") == "linear"
    old = from_plain_dict(Settings, new)
    assert old.dino.head_init == "trunc_normal" and to_plain_dict(old) == new
    assert content_hash(old.dino) != content_hash(preset("mini").dino)
    assert run_settings("dino", old) != run_settings("dino", preset("mini"))
    assert run_settings("clip", old) == run_settings("clip", preset("mini"))

# --- the convolutional stem

def test_the_default_tower_is_what_it_was():
    "Its initial weights do not depend on the setting that came later."
    assert build_vit(ViT()).state_dict()["patch_embed.proj.weight"].shape[2:] == (8, 8)
    assert to_plain_dict(ViT()) == to_plain_dict(ViT(stem="patch"))
    assert "stem" not in to_plain_dict(ViT()) and to_plain_dict(ViT(stem="conv"))["stem"] == "conv"

@pytest.mark.parametrize("size, patch", [(48, 8), (64, 16), (48, 4)])
def test_a_convolutional_stem_makes_the_same_grid(size, patch):
    tower = build_vit(ViT(size, patch, 48, 2, 2, stem="conv"), seed=3)
    images = torch.rand(2, 3, size, size)
    assert tower.patch_embed(images).shape == (2, size // patch, size // patch, 48)
    assert tower(torch.rand(2, 3, 2 * size, size)).shape == (2, 48) # other sizes too
    again = build_vit(ViT(size, patch, 48, 2, 2, stem="conv"), seed=3)
    assert weights_hash(tower) == weights_hash(again)
    assert not any("running" in name for name in tower.state_dict()) # averages of weights are whole

def test_its_output_for_an_image_depends_on_that_image_alone():
    tower = build_vit(ViT(48, 8, 48, 2, 2, stem="conv")).eval()
    images = torch.rand(5, 3, 48, 48)
    assert torch.allclose(tower(images)[:2], tower(images[:2]), atol=1e-5)

@pytest.mark.parametrize("objective", ["mae", "dinov2"])
def test_masks_of_patches_need_tokens_of_one_patch(objective):
    conv = override(settings(), **{"control.vit.patch_size": 8, "control.vit.image_size": 48,
                                   "control.vit.stem": "conv"})
    with pytest.raises(UserError, match="control.vit.stem=patch"):
        build_objective(objective, conv)

def test_a_stem_of_odd_patches_is_refused():
    with pytest.raises(UserError, match="4, 8, 16 or 32 px; got 12"): ViT(48, 12, stem="conv")
    with pytest.raises(UserError, match="unknown stem 'convs'"): ViT(stem="convs")

# --- InfoNCE of two views

def test_infonce_is_clip_with_a_view_in_place_of_the_caption(): # the same weights and loss
    own = apply_recipe("infonce", settings())
    model, clip = build_objective("infonce", own), build_objective("clip", own)
    assert weights_hash(model.vision) == weights_hash(clip.vision)
    assert model.logit_scale.item() == pytest.approx(clip.logit_scale.item())
    pair = dict(zip(("image", "text"), torch.nn.functional.normalize(torch.randn(2, 8, 32), dim=2)))
    encoded = pair | dict(scale=torch.tensor(5.0))
    assert model.loss(encoded, 0)[0].item() == pytest.approx(clip.loss(encoded, 0)[0].item())

def test_infonce_evaluates_the_averaged_tower():
    model = build_objective("infonce", apply_recipe("infonce", settings()))
    begun = {name: tensor.clone() for name, tensor in model.encoder_state().items()}
    with torch.no_grad():
        for parameter in model.vision.parameters(): parameter.add_(1.0)
    model.after_step(0.0)
    momentum = settings().dino.momentum
    assert all(torch.allclose(tensor, begun[name] + (1 - momentum), atol=1e-5)
               for name, tensor in model.encoder_state().items())

def test_its_run_stores_the_views_it_uses():
    other = override(settings(), **{"dino.jitter": 0.5, "dino.out_dim": 32})
    assert "dino" not in run_settings("infonce", settings())
    assert run_settings("infonce", other)["dino"] == dict(jitter=0.5)
    assert (run_settings("clip", apply_recipe("clip-dino-views", other))["dino"]
            == dict(jitter=0.5))
    assert "dino" not in run_settings("clip", other) and "dino" not in run_settings("dino", other)
