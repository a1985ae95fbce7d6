"""How fast is a DINO step here beside the authors' own code and beside lightly's parts?

The same vision transformer, head, batch and crops (2 global, 2 local), from PNG bytes to the
teacher's update; then the same with random tensors in place of views. The authors'
`train_one_epoch`, augmentation, model, head, loss and clipping run unchanged, given the crops'
sizes: on a processor their `.cuda()` is made to stay where it is and their autocast to mean bf16;
on a GPU they use fp16 and their gradient scaler, ccd and lightly bf16. lightly is a kit: its
transform, projection head, loss and teacher update are put together as in its examples, with views
of one size in one pass. Peers run twice, with the threads they would have by themselves and with
ccd's. Needs, for lightly: lightly, lightning-utilities.

python bench/dino.py --official FOLDER # a checkout of github.com/facebookresearch/dino; left out
where not given"""
import argparse, itertools, sys
from importlib.util import find_spec
from types import SimpleNamespace
from harness import POLICIES, Clock, compare, fresh, interleaved, sync, training_rate, write_csv


def settings(batch, scenes):
    from ccd.settings import override
    from ccd.presets import preset
    return override(preset("mini"),
                    **{"data.scenes": scenes, "control.batch_size": batch,
                       "control.samples": 1000 * batch})


def ours(batch, steps, scenes, views):
    s = settings(batch, scenes)
    if views: return training_rate("dino", s, batch, steps)
    import torch
    from ccd.device import device
    x = [v.to(device()) for v in tensors(s, batch)]
    return training_rate("dino", s, batch, steps, [torch.stack(x[:2], 1), torch.stack(x[2:], 1)])


def tensors(s, batch): # random, of the shapes of the views
    import torch
    sizes = [s.control.vit.image_size] * 2 + [s.dino.local_size] * s.dino.local_crops
    return [torch.randn(batch, 3, n, n) for n in sizes]


def batches(s, transform, batch, workers, views):
    "Batches for a peer: lists of views, one tensor a view."
    import torch
    if not views: return itertools.repeat((tensors(s, batch), 0))
    from datasets import Image
    from ccd.data.images import decode
    from ccd.data.corpora import open_corpus
    rows = open_corpus(s.data).corpus.select_columns(["image"]).cast_column("image",
                                                                            Image(decode=False))
    class Views(torch.utils.data.Dataset):
        def __len__(self): return len(rows)
        def __getitem__(self, i): return transform(decode(rows[i]["image"]["bytes"])), 0
    loader = torch.utils.data.DataLoader(Views(), batch, shuffle=True, num_workers=workers,
                                         drop_last=True,
                                         pin_memory=torch.cuda.is_available(),
                                         persistent_workers=workers > 0)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def official(folder, batch, steps, scenes, workers, views):
    import torch # before ccd, which would set what is not set
    import torch.distributed as dist
    sys.path.insert(0, folder)
    import main_dino, utils
    from vision_transformer import DINOHead, VisionTransformer
    s, cuda = settings(batch, scenes), torch.cuda.is_available()
    v, d = s.control.vit, s.dino
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0,
                            world_size=1)
    here = "cuda" if cuda else "cpu"
    if not cuda: stay_on_processor(torch, utils)
    def network(**head):
        vit = VisionTransformer([v.image_size], v.patch_size, embed_dim=v.width, depth=v.depth,
                                num_heads=v.heads, qkv_bias=True)
        head = DINOHead(v.width, d.out_dim, hidden_dim=d.hidden, bottleneck_dim=d.bottleneck,
                        **head)
        return utils.MultiCropWrapper(vit, head).to(here)
    student, teacher = (torch.nn.parallel.DistributedDataParallel(network()),
                        network().requires_grad_(False))
    teacher.load_state_dict(student.module.state_dict())
    augment = main_dino.DataAugmentationDINO(d.global_scale, d.local_scale, d.local_crops)
    for t in (augment.global_transfo1, augment.global_transfo2):
        t.transforms[0].size = (v.image_size, v.image_size)
    augment.local_transfo.transforms[0].size = (d.local_size, d.local_size)
    clock = Clock(batches(s, augment, batch, workers, views), batch, steps, sync=sync())
    loss = main_dino.DINOLoss(d.out_dim, 2 + d.local_crops, d.teacher_temp, d.teacher_temp, 0,
                              1).to(here)
    lr, decay, momentum = ([x] * len(clock)
                           for x in (s.control.lr, s.control.weight_decay, d.momentum))
    optimizer, scaler = (torch.optim.AdamW(utils.get_params_groups(student)),
                         torch.amp.GradScaler(here, enabled=cuda))
    args = SimpleNamespace(epochs=1, clip_grad=3.0, freeze_last_layer=0)
    main_dino.train_one_epoch(student, teacher, teacher, loss, clock, optimizer, lr, decay,
                              momentum, 0, scaler, args)
    return clock.rate


def stay_on_processor(torch, utils):
    "Where the authors' loop says CUDA, let it mean this processor, and fp16 bf16."
    torch.Tensor.cuda = lambda x, *_, **__: x
    torch.cuda.synchronize = lambda: None
    torch.cuda.amp.autocast = lambda enabled: torch.autocast("cpu", torch.bfloat16, enabled)
    utils.SmoothedValue.synchronize_between_processes = lambda _: None


def lightly(batch, steps, scenes, workers, views):
    import torch # before ccd, which would set what is not set
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.transforms import DINOTransform
    from timm.models.vision_transformer import VisionTransformer
    s, here = settings(batch, scenes), "cuda" if torch.cuda.is_available() else "cpu"
    v, d = s.control.vit, s.dino
    def network():
        vit = VisionTransformer(v.image_size, v.patch_size, embed_dim=v.width, depth=v.depth,
                                num_heads=v.heads,
                                num_classes=0, dynamic_img_size=True)
        return torch.nn.Sequential(vit,
                                   DINOProjectionHead(v.width, d.hidden, d.bottleneck,
                                                      d.out_dim)).to(here)
    student, teacher = network(), network().requires_grad_(False)
    loss_of, optimizer = (DINOLoss(d.out_dim).to(here),
                          torch.optim.AdamW(student.parameters(), s.control.lr))
    transform = DINOTransform(v.image_size, d.global_scale, d.local_size, d.local_scale,
                              d.local_crops)
    clock = Clock(batches(s, transform, batch, workers, views), batch, steps, sync=sync())
    for x, _ in clock:
        x = [t.to(here, non_blocking=True) for t in x]
        update_momentum(student, teacher, d.momentum)
        with torch.autocast(here, torch.bfloat16):
            wide, narrow = torch.cat(x[:2]), torch.cat(x[2:])
            told = teacher(wide).chunk(2)
            said = torch.cat([student(wide), student(narrow)]).chunk(len(x))
            loss = loss_of(list(told), list(said))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
    return clock.rate


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--official", help="folder with main_dino.py")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--workers", type=int, default=2, help="of the peers' loader")
    p.add_argument("--scenes", type=int, default=4096)
    p.add_argument("--steps", type=int, default=20, help="timed in each round")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out", help="CSV file for the table")
    a, rows = p.parse_args(), []
    peers = ((dict(official=dict(folder=a.official)) if a.official else {})
             | (dict(lightly={}) if find_spec("lightly") else {}))
    for name in {"official", "lightly"} - set(peers): print(f"{name}: left out, see --help")
    same = dict(batch=a.batch, steps=a.steps, scenes=a.scenes)
    fresh(__file__, "ours", **same | dict(steps=1), views=True) # composes the scenes once
    for views in (True, False):
        cases = {"ccd": lambda: fresh(__file__, "ours", **same, views=views)}
        for name, more in peers.items():
            for policy, env in POLICIES.items():
                cases[f"{name}, {policy}"] = lambda n=name, m=more, e=env: \
                    fresh(__file__, n, e, **same, **m, workers=a.workers, views=views)
        shown = "from PNG bytes" if views else "the same tensors, no views"
        rows += compare(f"DINO, batch {a.batch}, {shown}", interleaved(cases, a.rounds))
    if a.out: write_csv(a.out, rows)
    from ccd.device import hardware_info
    print(hardware_info())


if __name__ == "__main__": main()
