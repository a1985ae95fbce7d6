from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini, readme = ConfigParser(delimiters=["="]), Path("README.md")
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
name = cfg["lib_name"]
# cpu and gpu share one folder of faiss: install one of them
EXTRAS = "cpu", "gpu", "emoji", "logs", "lora", "language", "fonts", "ocr", "ray", "track", "dev"

setup(
    name=cfg["dist_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], url=cfg["git_url"], license="Apache-2.0",
    keywords=cfg["keywords"].split(), python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[name, f"{name}.*"]), include_package_data=True, zip_safe=False,
    install_requires=cfg["requirements"].split(),
    extras_require={x: cfg[f"{x}_requirements"].split() for x in EXTRAS},
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": [f"{name}={name}._modidx:d"],
                  "lmms_eval.models": ["ccd=ccd.vqa.llava.harness:register_lmms_eval"]},
)
