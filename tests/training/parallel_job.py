"Gradients of a step, or whole trainings, in as many processes as there are."
import torch
from ccd.files import UserError
from ccd.settings import override
from ccd.presets import preset
from ccd.training.distributed import (all_reduce_mean, full_tensor, init_distributed,
                                      is_main_process, main_process_first)
from ccd.data.corpora import open_corpus
from ccd.training.trainer import Trainer, on_device
from ccd.training.loop import train

CHANGES = {"control.samples": 160, "control.batch_size": 8, "dino.freeze_last_layer": 0.0}
OBJECTIVES = ("clip", "siglip", "dino", "supervised", "infonce")
SPREAD = [("ddp", 0), ("ddp", 3), ("fsdp", 0), ("fsdp", 3)] # sharding, micro batch

class Killed(BaseException): pass

def settings(**changes): return override(preset("smoke"), **CHANGES | changes)

def arms(llama): # name -> objective, what it changes, how it is spread
    lora = {"clip.text.source": llama, "clip.text.unlocked": 1, "clip.text.lora": 2}
    frozen = {"clip.text.source": llama, "clip.text.unlocked": 0}
    minilm = {"clip.text.source": "minilm", "clip.text.unlocked": 2}
    average = {"clip.views": "dino", "clip.ema": 0.9}
    centred = {"dinov2.centering": "mean", "dinov2.shared_head": True}
    return {o: (o, {}, SPREAD) for o in OBJECTIVES} | dict(
        lora=("clip", lora, [("ddp", 0), ("fsdp", 3)]),
        minilm=("clip", minilm, [("ddp", 3), ("fsdp", 0)]),
        frozen=("clip", frozen, [("fsdp", 3)]), average=("clip", average, [("fsdp", 0)]),
        dinov2=("dinov2", {}, [("ddp", 0), ("fsdp", 3)]),
        centred=("dinov2", centred, [("ddp", 3), ("fsdp", 0)]),
        mae=("mae", {}, [("ddp", 3), ("fsdp", 0)]))

def gradients(objective, corpus, changes, sharding="ddp", micro=0, steps=2):
    "Loss, gradients, averages and buffers of the last of some steps, whole, by name."
    t = Trainer(objective,
                settings(**changes, **{"runtime.sharding": sharding, "runtime.micro_batch": micro}),
                corpus)
    for k in range(steps - 1): t.step(k, t.feed(k))
    loss, _ = t._gradients(t.model.batch(on_device(t.feed(steps - 1))), 0.5, steps - 1)
    found = {k: full_tensor(p.grad) for k, p in t.model.named_parameters() if p.grad is not None}
    t.model.after_step(0.5)
    kept = [*t.model.named_buffers(),
            *((k, p) for k, p in t.model.named_parameters() if not p.requires_grad)]
    return found | {k: full_tensor(v) for k, v in kept} | dict(loss=all_reduce_mean(loss))

def all_gradients(corpus, llama, spread=True):
    return {(name, *how): gradients(o, corpus, changes, *how)
            for name, (o, changes, hows) in arms(llama).items()
            for how in (hows if spread else [("ddp", 0)])}

def training(corpus, name, sharding, out, killed=0, **changes):
    "Train, or go on; what the user is told, where that is all."
    def hook(step, model):
        if step == killed: raise Killed
    how = {"runtime.sharding": sharding, "runtime.checkpoint_minutes": 0.0 if killed else 5.0}
    try: train(name, settings(**how, **changes), corpus, out, hook)
    except Killed: return "killed"
    except UserError as e: return str(e)

def main(out, jobs):
    init_distributed()
    with main_process_first(): corpus = open_corpus(settings().data).corpus
    said = [training(corpus, *job[:-1], **job[-1]) for job in jobs] if isinstance(jobs, list) else \
        all_gradients(corpus, jobs["llama"])
    if is_main_process(): torch.save(said, out)
