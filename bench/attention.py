"""Explicit against fused attention in training, on the processor: why `build_vit` turns the fused
one off there."""
import statistics, time
import torch
from ccd.settings import ViT
from ccd.device import autocast, hardware_info
from ccd.training.towers import build_vit


def step_seconds(model, x):
    start = time.perf_counter()
    with autocast(): loss = model(x).float().square().mean()
    loss.backward()
    return time.perf_counter() - start


def main(batch=128, rounds=7):
    vit, x = ViT(), torch.randn(batch, 3, 48, 48)
    models = {fused: build_vit(vit) for fused in (False, True)}
    for fused, m in models.items():
        for b in m.blocks: b.attn.fused_attn = fused
        step_seconds(m, x)
    times = {f: [] for f in models}
    for _ in range(rounds): # interleaved, so that a noisy machine is noisy for both
        for f, m in models.items(): times[f].append(step_seconds(m, x))
    explicit, fused = (statistics.median(times[f]) for f in (False, True))
    print(f"explicit {batch / explicit:.0f} images/s, fused {batch / fused:.0f} images/s: "
          f"{fused / explicit:.2f} times as fast, {(vit.image_size // vit.patch_size) ** 2 + 1} "
          "tokens")
    print(hardware_info())


if __name__ == "__main__": main()
