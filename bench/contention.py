"""How long should threads spin before they sleep?

Why `ccd` sets OMP_WAIT_POLICY and GOMP_SPINCOUNT."""
import os, statistics, subprocess, sys

POLICIES = {"spin": dict(OMP_WAIT_POLICY="ACTIVE"), "PyTorch's own": {},
            "sleep at once": dict(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0"),
            "ccd": dict(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="1000")}
BUSY = "import torch\nx = torch.randn(512, 512)\nwhile True: x = torch.tanh(x @ x)"
TRAIN = """
import torch # before ccd, which would set what is not set
from ccd.settings import override
from ccd.presets import preset
from ccd.data.corpora import open_corpus
from ccd.training.loop import estimate_seconds
s = override(preset("mini"), **{"data.scenes": 2048})
print(s.control.samples / estimate("clip", s, open_corpus(s.data).corpus, steps=12))
"""


def images_per_second(policy, busy):
    env = ({k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
           | POLICIES[policy])
    rival = subprocess.Popen([sys.executable, "-c", BUSY], env=env) if busy else None
    try:
        said = subprocess.run([sys.executable, "-c", TRAIN], env=env, capture_output=True,
                              text=True, check=True).stdout
    finally:
        if rival: rival.kill()
    return float(said.split()[-1])


def main(rounds=3):
    from ccd.device import hardware_info
    cases = [(p, b) for b in (False, True) for p in POLICIES]
    rates = {c: [] for c in cases}
    for _ in range(rounds): # interleaved, so that a noisy machine is noisy for all
        for c in cases: rates[c].append(images_per_second(*c))
    rate = {c: statistics.median(r) for c, r in rates.items()}
    for p in POLICIES:
        alone, beside = rate[p, False], rate[p, True]
        print(f"{p:<14} alone {alone:4.0f} images/s ({alone / rate['ccd', False]:.2f} of ccd's), "
              f"beside a busy program {beside:4.0f} ({beside / rate['ccd', True]:.2f})")
    print(hardware_info())


if __name__ == "__main__": main()
