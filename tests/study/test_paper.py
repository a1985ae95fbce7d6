"The paper's study on stand-ins of all its inputs, and what it says of missing or broken ones."
import errno, json, shlex, shutil, signal, subprocess
import pandas as pd
import pytest
from ccd.cli import main
from ccd.presets import preset
from ccd.study import check, paper
from ccd.study.suite import find_suite
from conftest import signal_when, start
from rehearse import TOY, published_stand_ins, stand_ins

@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    "NAME=PLACE of all stand-ins."
    home = tmp_path_factory.mktemp("inputs")
    return home, dict(text.split("=", 1) for text in stand_ins(home))

def command(places, out, *options):
    at = [f"{name}={place}" for name, place in places.items()]
    return ["study", "--preset", "paper", "--out", str(out), "--at", *at, *TOY, *options]

@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("paper") / "study"
    main(command(inputs[1], out))
    return out

def test_the_whole_study_runs_on_stand_ins(finished):
    tables = finished / "probes/tables"
    accuracy = pd.read_csv(tables / "accuracy.csv")
    assert set(accuracy.task) == {"imagenet", "imagenetv2", "cifar10", "cifar10.1", "cifar100",
                                  "cars", "cub", "flowers"}
    assert {"CLIP", "DINO", "HOG", "k-means patches"} <= set(accuracy.encoder)
    named = pd.read_csv(tables / "zero_shot.csv") # by class names, for CLIP alone
    assert set(named.encoder) == {"CLIP"}
    assert len(pd.read_csv(finished / "comparison/pairs/pairs.csv")) > 0
    answers = pd.read_parquet(finished / "vlm/VMCBench/tables/answers.parquet")
    assert answers.subset.nunique() == 20
    page = (finished / "report.html").read_text(encoding="utf-8")
    for said in ("Training curves", "Published numbers", "VMCBench", "74.7", "second-hand"):
        assert said in page
    runs = {path.name for path in (finished / "train").iterdir()}
    assert runs == {"clip-0", "dino-0"}

def test_nothing_is_made_twice_and_a_lost_stage_is_made_again(inputs, finished):
    made = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    shutil.rmtree(finished / "probes/tables")
    main(command(inputs[1], finished))
    again = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    changed = {str(path.relative_to(finished)) for path in made if made[path] != again[path]}
    assert changed == {"probes/tables/manifest.json"}

def refused(places, out, capsys, *options):
    "What is said where an input is missing; nothing may be trained."
    with pytest.raises(SystemExit) as stop: main(command(places, out, *options))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert not (out / "train").exists()
    return said

def without(home, folder, name):
    "A copy of a folder that lacks a file."
    copy = home / f"broken-{len(list(home.iterdir()))}"
    shutil.copytree(folder, copy)
    for path in copy.rglob(name): path.unlink()
    return copy

BROKEN = dict( # input -> how it is broken, and what is said
    language=(lambda home, place: without(home, place, "tokenizer*"), "language ("),
    imagenet=(lambda home, place: without(home, place, "*.jpg"), "imagenet ("),
    cub=(lambda home, place: home / "nowhere", "cub ("),
    shards=(lambda home, place: home / "no shards", "shards ("),
    captions=(lambda home, place: home / "no.json", "captions ("),
    pictures=(lambda home, place: home / "models", "are not in"))

@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_input_is_told_before_anything_is_trained(inputs, name, tmp_path, capsys):
    home, places = inputs
    change, says = BROKEN[name]
    said = refused(places | {name: change(home, places[name])}, tmp_path / "study", capsys)
    assert says in said and "inputs are missing, and nothing was trained" in said
    assert "--at NAME=PLACE" in said

def test_a_renamed_column_of_a_benchmark_is_told(inputs, tmp_path, capsys):
    table = pd.read_csv(inputs[1]["VMCBench"], sep="\t").rename(columns=dict(question="asked"))
    table.to_csv(tmp_path / "VMCBench_DEV.tsv", sep="\t", index=False)
    said = refused(inputs[1] | dict(VMCBench=tmp_path / "VMCBench_DEV.tsv"), tmp_path / "study",
                   capsys)
    assert "VMCBench (" in said and "1 of" in said

def test_conversations_that_are_none_are_told(inputs, tmp_path, capsys):
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([dict(id="1", text="no conversation")]), encoding="utf-8")
    said = refused(inputs[1] | dict(instructions=file), tmp_path / "study", capsys)
    assert "is a conversation" in said

def test_classes_of_a_robustness_set_that_are_others_are_told(inputs, tmp_path, capsys):
    from rehearse import folders
    from ccd.settings import override
    from ccd.probing.command import probe
    from ccd.files import UserError
    other = folders(tmp_path / "v2", ("997", "998"), (("test", 4),), nested=False)
    settings = override(preset("smoke"), **{"analysis.few_shot_draws": 1})
    with pytest.raises(UserError, match="no class of imagenetv2.*is one of imagenet"):
        probe(["pixels:4"], [f"imagenet:{inputs[1]['imagenet']}", f"imagenetv2:{other}"], settings,
              tmp_path / "probes")

@pytest.mark.parametrize("at, says", [
    ("imagenet", "expected NAME=PLACE"), ("=/data", "expected NAME=PLACE"),
    ("imagenette=/data", "--at imagenette: expected one of shards, imagenet")])
def test_places_that_are_none(at, says, tmp_path, capsys):
    with pytest.raises(SystemExit): main(["study", "--preset", "paper", "--dry-run", "--at", at])
    assert says in capsys.readouterr().err

def test_a_variant_takes_its_text_tower_from_the_place_that_is_named(inputs):
    settings, suite = paper._placed(preset("paper"), find_suite("paper", preset("paper")),
                                    (f"clip-roberta-4={inputs[1]['clip-roberta-4']}",))
    own = paper._run_settings("clip-roberta-4", 1, settings, suite)
    assert own.clip.text.source == inputs[1]["clip-roberta-4"] and own.clip.text.unlocked == 4
    assert own.control.seed == 1
    assert paper._run_settings("clip", 0, settings, suite).clip.text.source == "scratch"

def test_the_plan_says_what_it_costs_and_what_is_missing(inputs, capsys):
    main([*command(inputs[1] | dict(cars="nowhere"), "unused"), "--dry-run", "--variants"])
    said = capsys.readouterr().out
    assert "MISSING" in said and said.count("MISSING") == 1 and "cars: probes" in said
    for part in ("train CLIP", "train CLIP-Vicuna", "embed and probe imagenet",
                 "language model, instructions", "GPU-hours", "dollars", "200000000"):
        assert part in said

def test_the_commands_train_the_runs_that_the_study_finds(inputs, finished, tmp_path, capsys):
    main([*command(inputs[1], "OUT"), "--commands", "torchrun"])
    *train, last = [shlex.split(line) for line in capsys.readouterr().out.strip().split("\n")]
    assert [line[5] for line in train] == ["clip", "dino"] and last[:2] == ["ccd", "study"]
    args = train[1][train[1].index("ccd.cli") + 1:]
    args[args.index("--out") + 1] = str(tmp_path / "dino")
    main(args)
    own, found = (json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                  for folder in (tmp_path / "dino", finished / "train/dino-0"))
    assert own["settings"] == found["settings"] and own["inputs"] == found["inputs"]

def test_jobs_of_a_cluster_wait_for_each_other(inputs, tmp_path, capsys):
    main([*command(inputs[1], "OUT"), "--commands", "slurm", "--variants"])
    script = tmp_path / "jobs.sh"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").strip().split("\n")[1:]
    assert len(lines) == 8 and "afterok:$job0:$job1:$job2:$job3:$job4:$job5:$job6" in lines[-1]
    assert inputs[1]["clip-vicuna"] in lines[-2]

def test_each_seed_is_a_job(inputs, capsys):
    main([*command(inputs[1], "OUT"), "--commands", "torchrun", "--analysis.seeds", "2"])
    *train, _ = [shlex.split(line) for line in capsys.readouterr().out.strip().split("\n")]
    assert [line[-1] for line in train] == [f"OUT/train/{name}" for name in (
        "clip-0", "dino-0", "clip-1", "dino-1")]
    assert "--control.seed" not in train[0]
    assert train[3][train[3].index("--control.seed") + 1] == "1"

def test_commands_of_another_study_are_refused(capsys):
    with pytest.raises(SystemExit): main(["study", "--preset", "smoke", "--commands", "slurm"])
    assert "--commands is of the paper's study" in capsys.readouterr().err

# --- what can happen on the way

def test_killed_and_then_without_room_nothing_is_lost(inputs, finished, tmp_path, capsys,
                                                         monkeypatch):
    from ccd.comparison import command as comparison
    out = tmp_path / "study"
    def made(*within):
        return {path: path.stat().st_mtime_ns
                for place in within for path in (out / place).rglob("manifest.json")}
    said, code = signal_when(start(*command(inputs[1], out)), lambda: any(
        out.glob("probes/answers/*/*/manifest.json")), signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    trained = made("train")
    assert len(trained) == 2 and not (out / "report.html").exists()
    def full(*_): raise OSError(errno.ENOSPC, "no room")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_pair_stage", full)
        with pytest.raises(SystemExit) as stop: main(command(inputs[1], out))
    assert stop.value.code and "no space left" in capsys.readouterr().err
    judged = made("train", "probes")
    assert trained.items() <= judged.items() and out / "probes/tables/manifest.json" in judged
    main(command(inputs[1], out))
    assert judged.items() <= made("train", "probes").items()
    for file in ("probes/tables/accuracy.csv", "comparison/pairs/pairs.csv",
                 "vlm/VMCBench/tables/summary.csv"):
        assert (out / file).read_text() == (finished / file).read_text(), file

def test_an_encoder_without_patch_tokens_is_told_before_the_probes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "colors:8", "--suite", "emoji", "--preset", "mini", "--out",
              str(tmp_path)])
    assert "has no patch tokens" in capsys.readouterr().err
    assert not (tmp_path / "probes").exists()

# --- the checks before it

@pytest.fixture(scope="module")
def published(inputs, tmp_path_factory):
    "Stand-ins of the published models and of the log: NAME=PLACE."
    return published_stand_ins(tmp_path_factory.mktemp("published"), inputs[0])

def test_the_checks_measure_everything_and_are_not_repeated(inputs, published, tmp_path, capsys,
                                                            monkeypatch):
    monkeypatch.setattr(check, "_SEEDS", 2)
    main(command(inputs[1] | published, tmp_path, "--check"))
    table = pd.read_csv(tmp_path / "check/checks.csv").fillna("")
    assert table.check.tolist() == [known.name for known in check._CHECKS]
    assert (table.got != "").all() and not table.note.str.startswith("not run").any(), table.note
    assert set(table.passed[:7]) == {"NO"} # random networks
    assert "7 of 8 checks failed" in capsys.readouterr().out # of the last nothing is published
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("found.json")}
    assert len(made) == len(check._CHECKS)
    main(command(inputs[1] | published, tmp_path, "--check"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("found.json")} == made

def test_a_check_that_cannot_be_run_is_listed_with_its_reason(inputs, published, tmp_path,
                                                               monkeypatch):
    monkeypatch.setattr(check, "_CHECKS", [known for known in check._CHECKS
                                           if "loss" in known.name])
    log = tmp_path / "log.txt"
    log.write_text("epoch 1: 10.5\n")
    main(command(inputs[1] | published | {"dino-log": log}, tmp_path, "--check"))
    row = pd.read_csv(tmp_path / "check/checks.csv").iloc[0]
    assert row.note.startswith("not run: ") and "is no log of DINO's code" in row.note
    assert "1 of 1 checks could not be run" in (tmp_path / "check/summary.txt").read_text()

def test_checks_of_another_study_are_refused(capsys):
    with pytest.raises(SystemExit): main(["study", "--preset", "smoke", "--check"])
    assert "--check is of the paper's study" in capsys.readouterr().err

def test_what_is_expected_is_what_is_published():
    from ccd.vqa.published.tables import load_published_table
    known = load_published_table("accuracy")
    values = known[known.encoder == "DINO B/16, official"].value.astype(float)
    asked = [own.expected for own in check._CHECKS if own.name.startswith("DINO B/16")]
    assert len(asked) == 3
    assert all((values - value).abs().min() < 1e-9 for value in asked)
