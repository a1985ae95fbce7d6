"The command line explains itself, fast."
import subprocess, sys
import pytest
from ccd.cli import COMMANDS, main
from ccd.core import preset

def test_help_imports_nothing_heavy():
    code = ("import sys; from ccd.cli import main; main(['--help']); "
            "print([m for m in ('torch', 'datasets', 'pandas', 'faiss', 'umap') if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]" and all(c in said for c in COMMANDS)

@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_usage(args, capsys):
    assert main(args) is None
    assert "usage: ccd COMMAND" in capsys.readouterr().out

@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop: main([command, "--help"])
    said = capsys.readouterr()
    assert stop.value.code in (0, None)
    assert COMMANDS[command].__doc__.split(",")[0] in " ".join((said.out + said.err).split())

def test_help_shows_the_values_of_the_preset(capsys):
    for name in ("smoke", "mini"):
        with pytest.raises(SystemExit): main(["train", "--preset", name, "--help"])
        said = capsys.readouterr()
        assert f"(default: {preset(name).control.samples})" in " ".join((said.out + said.err).split())
