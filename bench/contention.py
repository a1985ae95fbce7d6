"""Spinning against sleeping threads while another program works: why `ccd.core` sets OMP_WAIT_POLICY."""
import os, subprocess, sys

BUSY = "import torch\nx = torch.randn(512, 512)\nwhile True: x = torch.tanh(x @ x)"
TRAIN = """
from ccd.core import machine, override, preset
from ccd.sources import open_corpus
from ccd.training import estimate
s = override(preset("mini"), **{"world.scenes": 2048})
print(s.control.samples / estimate("clip", s, open_corpus(s.world).corpus, steps=8))
"""


def images_per_second(policy):
    env = os.environ | {"OMP_WAIT_POLICY": policy}
    rival = subprocess.Popen([sys.executable, "-c", BUSY], env=env)
    try: said = subprocess.run([sys.executable, "-c", TRAIN], env=env, capture_output=True, text=True, check=True).stdout
    finally: rival.kill()
    return float(said.split()[-1])


def main():
    from ccd.core import machine
    rate = {p: images_per_second(p) for p in ("ACTIVE", "PASSIVE")}
    print(f"CLIP beside a busy program: spinning {rate['ACTIVE']:.0f} images/s, sleeping {rate['PASSIVE']:.0f}: "
          f"{rate['PASSIVE'] / rate['ACTIVE']:.1f} times as fast")
    print(machine())


if __name__ == "__main__": main()
