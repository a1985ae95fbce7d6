"A vision-language model, trained in as many processes as there are."
from dataclasses import replace
from ccd import vlm as v
from ccd.core import Run, World
from ccd.parallel import start

WORLD = World(scenes=512, test_scenes=192)
STEPS = dict(read=v.Stage(128, 32, 3e-3), align=v.Stage(128, 32, 3e-3), tune=v.Stage(128, 32, 3e-3))

def training(out, home, sharding="ddp", adapt="whole", micro=0):
    settings = replace(v.vlm_preset("smoke"), adapt=adapt, rank=4, run=Run(sharding=sharding, micro_batch=micro), **STEPS)
    v.emoji_vlm("random:0", settings, WORLD, out, home)

def main(jobs):
    start()
    for job in jobs: training(*job)
