"""Write constraints-low.txt: the lowest version of each requirement that settings.ini admits, for
`make low`."""
import re
from configparser import ConfigParser
from pathlib import Path

# never installed beside cpu's
ROOT, ELSEWHERE = Path(__file__).resolve().parents[1], "gpu_requirements"

def low_ends(settings):
    "NAME==VERSION of each requirement in `settings`, the text of settings.ini."
    ini = ConfigParser(delimiters=["="])
    ini.read_string(settings)
    every = [r for k, v in ini["DEFAULT"].items() if k.endswith("requirements") and k != ELSEWHERE
             for r in v.split()]
    found = [re.match(r"([\w.-]+)(?:\[[\w,]+\])?[>=]=([\w.]+)", r) for r in every]
    if None in found:
        raise SystemExit(f"no low end: {every[found.index(None)]}; settings.ini wants "
                         "NAME>=LOW,<HIGH or NAME==VERSION")
    return sorted((f"{m[1]}=={m[2]}" for m in found), key=str.lower)

if __name__ == "__main__":
    ends = low_ends((ROOT/"settings.ini").read_text(encoding="utf-8"))
    (ROOT/"constraints-low.txt").write_text("\n".join(ends) + "\n", encoding="utf-8")
