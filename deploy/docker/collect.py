#!/usr/bin/env python3
"""In the image's build stage: collects the root file system of the image, programs, flock and the libraries that they load.

The libraries are Debian's, each with its licence (usr/share/doc) and its entry of dpkg's database (var/lib/dpkg/status.d, where
scanners look in images without dpkg). Standard library only, as it runs in a bare container.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess

import sbom

LIBRARIES = pathlib.PurePosixPath("usr/lib/x86_64-linux-gnu")
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
USERS = {"etc/passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nassay:x:65532:65532:assay:/tmp:/usr/sbin/nologin\n",
         "etc/group": "root:x:0:\nassay:x:65532:\n",
         "etc/nsswitch.conf": "hosts: files dns\n"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded_by(program, extra):
    """Files of the libraries that the loader takes for `program`, itself included; `extra` is a folder with further ones."""
    text = output("env", f"LD_LIBRARY_PATH={extra}", "ldd", str(program))
    if missing := re.findall(r"^\s*(\S+) => not found", text, re.MULTILINE):
        raise SystemExit(f"collect.py: {program} needs {', '.join(missing)}, which the base does not have")
    return set(re.findall(r"=> (/\S+)", text)) | set(re.findall(r"^\s*(/\S+) \(", text, re.MULTILINE))


def owners_of(paths):
    """The Debian package that owns each file; those that none owns are left out."""
    names = {}
    for path in paths:
        for name in (path, os.path.realpath(path)):  # and the other names that a merged /usr gives it
            names[name] = names[name.removeprefix("/usr") if name.startswith("/usr/") else f"/usr{name}"] = path
    found = {}
    for line in subprocess.run(["dpkg-query", "--search", *names], capture_output=True, text=True).stdout.splitlines():
        of, _, name = line.rpartition(": ")
        if name in names:
            found[names[name]] = of.split(",")[0].split(":")[0]
    return found


def package(kind, name, version, supplier, *, source=None, architecture="all"):
    return {"kind": kind, "name": name, "version": version, "supplier": supplier, "source": source or name, "architecture": architecture}


class Collection:
    """The tree, and the package of each file in it."""

    def __init__(self, root):
        self.root, self.owners, self.packages = root, {}, []

    def write(self, place, text, of):
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        (self.root / place).write_text(text)
        self.owners[str(place)] = of

    def copy(self, source, place, of, mode=0o644):
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, self.root / place)
        (self.root / place).chmod(mode)
        self.owners[str(place)] = of

    def add_program(self, source, of):
        place = f"usr/bin/{source.name}"
        self.copy(source, place, of, 0o755)
        if of == "assay":
            output("strip", str(self.root / place))

    def add_library(self, path, of):
        name, is_loader = os.path.basename(path), "/lib64/" in path
        if of is None and not name.startswith("libdnnl."):
            raise SystemExit(f"collect.py: {path} is of no package of the base")
        self.copy(path, f"usr/lib64/{name}" if is_loader else str(LIBRARIES / name), of or "onednn", 0o755 if is_loader else 0o644)

    def add_debian(self, name):
        """What is to be known of a package whose files are here."""
        fields = "${Version}\t${source:Package}\t${Architecture}"
        version, source, architecture = output("dpkg-query", "--show", "--showformat", fields, name).splitlines()[0].split("\t")
        self.packages.append(package("library", name, version, sbom.DEBIAN, source=source, architecture=architecture))
        self.write(f"var/lib/dpkg/status.d/{name}", output("dpkg-query", "--status", name), name)
        licence = f"/usr/share/doc/{name}/copyright"
        if os.path.exists(licence):  # not in the documents-free bases that some sites make
            self.copy(licence, licence[1:], name)


def other_packages(collection, programs, version, revision):
    """What Debian's database does not know: the programs, oneDNN from outside, what is compiled in."""
    yield package("own", "assay", f"{version}+{revision}", "NOASSERTION")
    if "onednn" in collection.owners.values():
        found = (programs / "lib" / "libdnnl.so.3").resolve().name.removeprefix("libdnnl.so.")
        yield package("library", "onednn", found, "Organization: Intel")
    for line in (programs / "compiled_in.txt").read_text().splitlines():
        name, package_version, source = line.split()
        yield package("compiled-in", name, package_version, "Organization: NVIDIA" if source == "cuda" else sbom.DEBIAN, source=source)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path, help="folder to make")
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder with assay-server, assay, lib/, compiled_in.txt")
    parser.add_argument("--revision", default="unknown")
    parser.add_argument("--timestamp", type=int, default=0, help="of the list, in seconds since 1970")
    arguments = parser.parse_args()
    collection = Collection(arguments.root)
    programs = {arguments.programs / "assay-server": "assay", arguments.programs / "assay": "assay", pathlib.Path("/usr/bin/flock"): "util-linux"}
    libraries = set()
    for program, of in programs.items():
        collection.add_program(program, of)
        libraries |= loaded_by(program, arguments.programs / "lib")
    owners = owners_of(libraries)
    for path in sorted(libraries):
        collection.add_library(path, owners.get(path))
    for place, text in USERS.items():
        collection.write(place, text, "assay")
    collection.copy(AUTHORITIES, AUTHORITIES[1:], "ca-certificates")
    collection.copy("/etc/os-release", "usr/lib/os-release", "base-files")
    for name in sorted(set(collection.owners.values()) - {"assay", "onednn"}):
        collection.add_debian(name)
    for name in ("models", "tmp", "etc/assay"):
        (arguments.root / name).mkdir(parents=True)
    (arguments.root / "tmp").chmod(0o1777)  # a tmpfs of podman takes over the mode of the folder that it is mounted on
    for link, target in (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("etc/os-release", "../usr/lib/os-release")):
        (arguments.root / link).symlink_to(target)

    version = output("env", f"LD_LIBRARY_PATH={arguments.programs}/lib", str(arguments.programs / "assay-server"), "--version").split()[-1]
    release = dict(line.split("=", 1) for line in pathlib.Path("/etc/os-release").read_text().splitlines() if "=" in line)
    distribution = f"{release['ID']}-{release.get('VERSION_ID', 'unstable')}".replace('"', "")
    collection.packages += other_packages(collection, arguments.programs, version, arguments.revision)
    document = sbom.document(arguments.root, collection.packages, collection.owners, arguments.revision, arguments.timestamp, distribution)
    collection.write(sbom.PLACE, sbom.json.dumps(document, indent=1) + "\n", "assay")


if __name__ == "__main__":
    main()
