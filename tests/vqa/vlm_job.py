"A vision-language model, trained in as many processes as there are."
from dataclasses import replace
from ccd.vqa.llava import answering, settings as llava_settings
from ccd.settings import DataSettings, RuntimeSettings
from ccd.training.distributed import init_distributed

WORLD = DataSettings(scenes=512, test_scenes=192)
STEPS = dict(read=llava_settings.Stage(128, 32, 3e-3), align=llava_settings.Stage(128, 32, 3e-3),
             tune=llava_settings.Stage(128, 32, 3e-3))

def training(out, home, sharding="ddp", adapt="whole", micro=0):
    settings = replace(llava_settings.vlm_preset("smoke"), adapt=adapt, rank=4,
                       runtime=RuntimeSettings(sharding=sharding, micro_batch=micro), **STEPS)
    answering._emoji_vlm("random:0", settings, WORLD, out, home)

def main(jobs):
    init_distributed()
    for job in jobs: training(*job)
