"""Train a classifier of the study's size on each label that emoji-2 draws, and probe it beside the
baselines: `python tools/data_check.py OUT RESULTS`. Whatever is done is not done again."""
import sys
from pathlib import Path
from ccd.data.corpora import open_corpus
from ccd.files import slug, to_plain_dict, write_json
from ccd.presets import preset
from ccd.runs import cached_stage, outputs_hash, run_settings, write_manifest
from ccd.settings import override
from ccd.study.scaling.grid import GRIDS
from ccd.study.scaling.measures import _DRAWS, _EVALUATIONS
from ccd.study.scaling.runs import _as_json
from ccd.training.loop import train

# column -> images seen in training
LABELS = dict(word=600_000, style=600_000, object_color=150_000, ground_color=30_000,
              count=150_000, relation=150_000)

def settings_of(label):
    "Return the settings of one classifier."
    return override(preset("controlled"), **{
        "data.scenes": 300_000, "control.samples": LABELS[label], "supervised.label": label,
        "supervised.classes": 128})

def measure(spec, name, settings, about, inputs, out, results):
    "Probe one encoder on all tasks of emoji-2."
    evaluation = _EVALUATIONS["tasks"]
    def make(tmp):
        table = evaluation.of(spec, settings, out / "vectors" / slug(name))
        write_json(tmp / "measured.json", dict(metrics=_as_json(table)))
    about = about | dict(data=to_plain_dict(settings.data), version=evaluation.version,
                         draws=_DRAWS)
    return cached_stage(results / slug(name), about, inputs, make)

def main(out, results):
    "Train, measure, and return the folder of the measurements."
    for label in LABELS:
        settings = settings_of(label)
        run = train("supervised", settings, open_corpus(settings.data).corpus, out / label,
                    title=f"classifier, {label}")
        measure(f"ccd:{run}", label, settings, dict(run=run_settings("supervised", settings)),
                dict(encoder=outputs_hash(run)), out, results)
    for spec in GRIDS["controlled"].baselines:
        measure(spec, spec, settings_of("word"), dict(baseline=spec), {}, out, results)
    files = [file.relative_to(results) for file in sorted(results.rglob("*"))
             if file.is_file() and file != results / "manifest.json"]
    write_manifest(results, LABELS, {}, files, 0.0,
                   command="python tools/data_check.py runs/data-check results/data-check")
    return results

if __name__ == "__main__": print(main(*map(Path, sys.argv[1:])))
