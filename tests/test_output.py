"""What is written goes to a folder that can be written to, by one command at a time, whole or not
at all."""
import errno, os, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from ccd import files
from ccd.cli import _at_home, main
from ccd.files import (UserError, _LOCK, alone, atomic_write, cache_dir, user_path, _writable,
                       write_json)
from ccd.runs import claim_folder, read_manifest, require_own_folder
from conftest import finish, start

@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(); monkeypatch.chdir(tmp_path)
    return tmp_path

def test_home_is_meant_wherever_a_path_begins(room):
    home = str(room / "home")
    assert [_at_home(a)
            for a in ("~", "~/x", "--out=~/x", "npy:~/v.npy", "filter:light:~/s", "MODEL@0=~/logs",
                      "hf:~")] == [
        home, f"{home}/x", f"--out={home}/x", f"npy:{home}/v.npy", f"filter:light:{home}/s",
        f"MODEL@0={home}/logs", f"hf:{home}"]
    for as_it_is in ("a~/b", "x/~/y", "hf:a~b", "~nobody/x", "--control.lr=3e-4", "./~"):
        assert _at_home(as_it_is) == as_it_is
    assert user_path("~/x") == room / "home/x" and user_path(Path("a/~")) == Path("a/~")

@pytest.mark.parametrize("path, says",
                         [("", "is no path"), ("  ", "is no path"), ("a\0b", "is no path"),
                          ("~nobody-of-that-name/x", "no home folder is known"),
                                        ("x" * 300, "300 bytes"), ("a/" + "é" * 130, "260 bytes")])
def test_what_no_file_can_be_called(path, says):
    for f in (user_path, _writable, lambda p: alone(p).__enter__()):
        with pytest.raises(UserError, match=says): f(path)

@pytest.mark.parametrize("home", ["", None])
def test_without_a_home(monkeypatch, home):
    monkeypatch.delenv("CCD_CACHE", raising=False)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    # as where the user is not in the list of users
    if home is None:
        monkeypatch.setattr("os.path.expanduser", lambda p: p)
    with pytest.raises(UserError, match="set HOME"): user_path("~/x")
    with pytest.raises(UserError, match="the cache folder cannot be created.*CCD_CACHE"):
        cache_dir("x")

def test_a_cache_that_is_a_file(room, monkeypatch):
    (room / "file").write_text("mine", encoding="utf-8")
    monkeypatch.setenv("CCD_CACHE", str(room / "file"))
    with pytest.raises(UserError, match="CCD_CACHE=.*file: the cache has to be a folder"):
        cache_dir("corpora")
    monkeypatch.setenv("CCD_CACHE", "~/cache")
    assert cache_dir("a", "b") == room / "home/cache/a/b"

def places(room): # name -> what is in the way
    (room / "file").write_text("mine", encoding="utf-8")
    (room / "broken").symlink_to(room / "gone"); (room / "loop").symlink_to(room / "loop")
    yield from {"file": "there is a file of that name",
                "file/deeper/still": "file is a file, and would have to be a folder",
                "broken": "is a link to .*gone, which is not there",
                "broken/deeper": "is a link to", "loop": "is a link to",
                "n" * 252: "file name too long"}.items()
    if Path("/proc/self").exists(): yield "/proc/x/y", "nothing can be made in /proc"

def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(room):
    for place, says in places(room):
        before = sorted(room.rglob("*"))
        for f in (_writable, lambda p: alone(p).__enter__()):
            with pytest.raises(UserError, match=says): f(place)
        # a folder may have this name, but nothing beside it that is later renamed to it
        if place[0] != "n":
            with pytest.raises(UserError, match="a.json cannot be written"):
                write_json(Path(place) / "a.json", 1)
        assert (sorted(room.rglob("*")) == before
                and (room / "file").read_text(encoding="utf-8") == "mine")

@pytest.mark.parametrize("number, says",
                         [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"),
                          (errno.ENOSPC, "no space left")])
def test_a_folder_that_may_not_be_written_to(room, monkeypatch, number, says): # for an administrator too  # noqa: E501
    def barred(*_, **__): raise OSError(number, os.strerror(number))
    with monkeypatch.context() as m:
        m.setattr(tempfile, "TemporaryFile", barred)
        with pytest.raises(UserError, match=says): _writable(room / "out")
    with monkeypatch.context() as m:
        m.setattr(Path, "mkdir", barred)
        with pytest.raises(UserError, match=says), alone(room / "out"): pass
        with pytest.raises(UserError, match=says), atomic_write(room / "deep/out"): pass
    assert not (room / "out").exists()

WRITERS = dict(text=lambda f: f.write_text("a" * 100_000, encoding="utf-8"),
               csv=lambda f: pd.DataFrame(dict(a=range(20_000))).to_csv(f),
               parquet=lambda f: pd.DataFrame(dict(a=range(20_000))).to_parquet(f),
               array=lambda f: np.arange(1e5).tofile(f))

def _npy(f):
    with open(f, "wb") as o: np.save(o, np.arange(1e5))

def _npz(f):
    with open(f, "wb") as o: np.savez(o, x=np.arange(1e5))

def _png(f):
    from PIL import Image
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3),
                                                      np.uint8)).save(f, "PNG")

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("write", [*WRITERS.values(), _npy, _npz, _png],
                         ids=[*WRITERS, "npy", "npz", "png"])
def test_whatever_writes_says_that_the_disk_is_full(tmp_path, write):
    write_json(tmp_path / "x", "old")
    with pytest.raises(UserError,
                       match="no space left while writing .*x; nothing was "
                             "lost"), atomic_write(tmp_path / "x") as tmp:
        tmp.symlink_to("/dev/full"); write(tmp)
    assert ([p.name for p in tmp_path.iterdir()] == ["x"]
            and files.read_json(tmp_path / "x") == "old")

def test_what_is_in_the_way_of_a_file_or_folder_stays(room):
    (room / "a.json").mkdir(); (room / "a.json/mine").write_text("mine", encoding="utf-8")
    (room / "made").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="there is a folder of that name"):
        write_json(room / "a.json", 1)
    with pytest.raises(UserError,
                       match="there is a file of that name"), atomic_write(room / "made") as tmp:
        tmp.mkdir()
    assert sorted(p.name for p in room.rglob("*")) == ["a.json", "home", "made", "mine"]

def test_a_folder_behind_a_link_is_replaced_there(room):
    (room / "disk").mkdir(); (room / "results").symlink_to(room / "disk")
    for k in range(2):
        with atomic_write(room / "results") as tmp: tmp.mkdir(); (tmp / str(k)).touch()
    assert (room / "results").is_symlink() and [p.name for p in (room / "disk").iterdir()] == ["1"]

REPLACE = """
import sys
from ccd.files import atomic_write
for k in range(150):
    with atomic_write(sys.argv[1]) as tmp:
        tmp.mkdir()
        for n in "ab": (tmp / n).write_text(sys.argv[2])
"""

def test_two_processes_that_replace_one_folder_leave_it_whole(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", REPLACE, tmp_path / "made", who],
                             stderr=subprocess.PIPE) for who in "xy"]
    for p in both: assert p.wait(60) == 0, p.stderr.read()
    assert len({(tmp_path / "made" / n).read_text(encoding="utf-8") for n in "ab"}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["made"]

HOLD = """
import sys, time
from ccd.files import alone
with alone(sys.argv[1], wait=len(sys.argv) > 2): print("in", flush=True); sys.stdin.read()
"""

def holder(folder, *wait): # a process that is in a folder until it is told or killed
    return subprocess.Popen([sys.executable, "-c", HOLD, folder, *wait], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, encoding="utf-8")

def test_one_process_at_a_time(tmp_path, capfd):
    folder = tmp_path / "deep/out"
    first = holder(folder)
    assert first.stdout.readline() == "in\n"
    for place in (folder, folder / "train/clip-0"): # and within it
        with pytest.raises(UserError,
                           match=rf"another ccd is at work in .*process {first.pid} on .*, since "
                                 rf".* UTC"), alone(place):
            pass
    second = holder(folder, "wait")
    # it says what it waits for
    while f"process {first.pid}" not in capfd.readouterr().err:
        time.sleep(0.05)
    assert second.poll() is None
    first.kill(); first.wait()
    assert second.stdout.readline() == "in\n" # the lock ends with its process, however that dies
    with pytest.raises(UserError, match=f"process {second.pid}"), alone(folder): pass
    second.communicate()
    assert not any(folder.iterdir())
    # one process may enter again
    with alone(folder), alone(folder), alone(folder / "part"):
        (folder / "kept").touch()
    assert [p.name for p in folder.iterdir()] == ["kept"]

def test_a_lock_that_a_killed_process_left_is_no_file_of_the_user(tmp_path):
    first = holder(tmp_path / "out")
    assert first.stdout.readline() == "in\n"
    first.kill(); first.wait()
    assert (tmp_path / "out" / _LOCK).exists()
    require_own_folder(tmp_path / "out"); claim_folder(tmp_path / "out", dict(a=1))
    with alone(tmp_path / "out"): pass
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["settings.json"]

ONCE = """
import sys, time
from pathlib import Path
from ccd.files import once
def make(tmp): time.sleep(0.3); open(sys.argv[2], "a").write("made "); tmp.write_text("whole")
print(once(Path(sys.argv[1]), make).read_text())
"""

def test_two_processes_make_a_thing_of_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CCD_CACHE", str(tmp_path / "cache"))
    args = [sys.executable, "-c", ONCE, tmp_path / "cache/thing", tmp_path / "log"]
    both = [subprocess.Popen(args, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    assert [p.communicate(timeout=60)[0] for p in both] == ["whole\n"] * 3
    assert ((tmp_path / "log").read_text(encoding="utf-8") == "made "
            and [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["thing"])

def test_a_folder_with_a_manifest_of_another_kind_is_the_users(tmp_path):
    write_json(tmp_path / "app/manifest.json", dict(name="a web page's", outputs=[]))
    assert read_manifest(tmp_path / "app") is None
    with pytest.raises(UserError, match="files that ccd did not make, such as manifest.json"):
        require_own_folder(tmp_path / "app")
    (tmp_path / "run").mkdir(); (tmp_path / "run/t.csv").write_text("a", encoding="utf-8")
    write_json(tmp_path / "run/manifest.json",
               dict(settings_hash="", inputs={}, outputs={"t.csv": {}}))
    require_own_folder(tmp_path / "run")
    (tmp_path / "run/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="such as notes.txt"): require_own_folder(tmp_path / "run")

@pytest.mark.parametrize("held, says", [("[]", "is not of ccd"), ("{", "is no JSON")])
def test_settings_of_another_kind_are_the_users(tmp_path, held, says):
    (tmp_path / "settings.json").write_text(held, encoding="utf-8")
    with pytest.raises(UserError, match=says): claim_folder(tmp_path, dict(a=1))
    assert (tmp_path / "settings.json").read_text(encoding="utf-8") == held

@pytest.fixture
def tiny_folder(tmp_path):
    from PIL import Image
    (tmp_path / "tiny").mkdir()
    for k in range(4):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (16, 16, 3),
                                                          np.uint8)).save(
                                                              tmp_path / f"tiny/{k}.png")
    return ["embed", "pixels:4", "--preset", "smoke", "--images", str(tmp_path / "tiny"), "--out",
            str(tmp_path / "out")]

def test_a_command_is_kept_out_of_a_folder_where_another_works(tiny_folder, tmp_path, capsys):
    first = holder(tmp_path / "out")
    assert first.stdout.readline() == "in\n"
    for args in (tiny_folder, ["vqa", str(tmp_path / "no-log"), "--out", str(tmp_path / "out")],
                 ["train", "clip", "--preset", "smoke", "--data.source",
                 f"folder:{tmp_path / 'tiny'}", "--control.batch-size", "2", "--control.samples",
                  "4", "--out", str(tmp_path / "out/train/clip-0")]):
        with pytest.raises(SystemExit) as stop: main(args)
        assert (stop.value.code == 2
                and f"another ccd is at work in {tmp_path / 'out'} (process {first.pid} on"
                in capsys.readouterr().err)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [_LOCK]
    first.kill(); first.wait()
    main(tiny_folder) # goes on over what was left
    assert (_LOCK not in {p.name for p in (tmp_path / "out").iterdir()}
            and read_manifest(tmp_path / "out"))

def test_two_commands_in_one_folder_at_once(tiny_folder, tmp_path):
    said = [finish(p) for p in [start(*tiny_folder) for _ in range(2)]]
    assert sorted(code
                  for _, code
                  in said)[0] == 0 and all(code == 0 or "another ccd is at work in" in text
                                           for text, code in said), said
    assert (len(np.load(tmp_path / "out/vectors.npy")) == 4
            and not [*tmp_path.rglob("*.tmp-*"), *tmp_path.rglob(_LOCK)])
