"""How much memory does one loss of a batch take, forward and backward, as the batch grows?

InfoNCE and the sigmoid loss, as open_clip computes them and as ccd does: ccd's sigmoid loss goes
through the pairs in chunks. fp32, unit vectors of 512 numbers, no towers; the most memory held
above what held before, each loss and batch in a process of its own. A curve ends where the next
batch is expected to need more memory than is free.

python bench/siglip_memory.py --out siglip_memory.csv"""
import argparse, time
from harness import fresh, write_csv
from scale import held

LOSSES = ("open_clip ClipLoss", "open_clip SigLipLoss", "ccd clip_loss", "ccd siglip_loss")


def loss_of(name, chunk):
    "A function of images, texts, scale and bias."
    from ccd.training.objectives.contrastive import clip_loss, siglip_loss
    from open_clip.loss import ClipLoss, SigLipLoss
    return {"open_clip ClipLoss": lambda u, v, scale, _: ClipLoss()(u, v, scale),
            "open_clip SigLipLoss": SigLipLoss(),
            "ccd clip_loss": lambda u, v, scale, _: clip_loss(u, v, scale),
            "ccd siglip_loss": lambda *x: siglip_loss(*x, chunk=chunk)}[name]


def free_mb():
    import psutil, torch
    return (torch.cuda.mem_get_info()[0] if torch.cuda.is_available()
            else psutil.virtual_memory().available) / 1e6


def measure(name, batch, dim, chunk):
    import torch
    from ccd.device import device
    loss, here = loss_of(name, chunk), device()
    def once(n):
        def unit():
            return torch.nn.functional.normalize(torch.randn(n, dim, device=here),
                                                 dim=1).requires_grad_()
        u, v = unit(), unit()
        scale, bias = (torch.tensor(x, device=here, requires_grad=True) for x in (10.0, -10.0))
        before, start = held()[0], time.perf_counter()
        value = loss(u, v, scale, bias)
        value.backward()
        return before, float(value.detach()), time.perf_counter() - start
    once(16) # what the libraries take once
    before, value, seconds = once(batch)
    return dict(loss=name, batch=batch, peak_mb=round(held()[1] - before, 1),
                seconds=round(seconds, 3),
                loss_value=round(value, 4), free_mb=round(free_mb()))


def curve(name, batches, dim, chunk):
    "Rows of one loss, up to where memory would not do."
    rows = []
    for b in batches:
        if (rows
            and (need := rows[-1]["peak_mb"] * (b / rows[-1]["batch"]) ** 2)
            > 0.9 * rows[-1]["free_mb"]):
            print(f"{name}: stopped before {b:,}: it would need some {need:,.0f} MB, "
                  f"{rows[-1]['free_mb']:,} MB are free")
            break
        rows.append(row := fresh(__file__, "measure", name=name, batch=b, dim=dim, chunk=chunk))
        print(f"{name:<22} batch {b:>6,}   {row['peak_mb']:>10,.1f} MB   {row['seconds']:7.2f} s   "
              f"loss {row['loss_value']:.3f}", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", help="a csv to write")
    p.add_argument("--batches", nargs="+", type=int, default=[1 << k for k in range(10, 16)])
    p.add_argument("--dim", type=int, default=512)
    p.add_argument("--chunk", type=int, default=1024, help="of ccd's sigmoid loss")
    a = p.parse_args()
    rows = [r for name in LOSSES for r in curve(name, a.batches, a.dim, a.chunk)]
    if a.out: write_csv(a.out, rows)
    from ccd.device import hardware_info
    print(hardware_info())


if __name__ == "__main__": main()
