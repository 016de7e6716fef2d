#!/usr/bin/env python3
"""The list of what is in the image, as SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3/), and a check that it is true.

usage: sbom.py ROOT      ROOT is an unpacked image; prints what is wrong with its usr/share/sbom/assay.spdx.json

Packages of Debian are those that own a file of the image, by dpkg's data, each with a package URL; every file stands in the
document with its checksums. `document` is called by collect.py, in the image's build stage; standard library only.
"""

import hashlib
import json
import pathlib
import re
import sys
import time
import urllib.parse

PLACE = pathlib.PurePosixPath("usr/share/sbom/assay.spdx.json")
ROOT_PACKAGE = "SPDXRef-assay"
DEBIAN = "Organization: Debian"


def spdx_id(*words):
    return "SPDXRef-" + "-".join(re.sub(r"[^A-Za-z0-9.-]", lambda match: f".{ord(match[0]):x}.", word) for word in words)


def digests(path):
    data = path.read_bytes()
    return [{"algorithm": name.upper(), "checksumValue": hashlib.new(name, data).hexdigest()} for name in ("sha1", "sha256")]


def files_of(root):
    """Paths of regular files relative to `root`; the document cannot list itself. Links add no bytes."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*")
                  if path.is_file() and not path.is_symlink() and path.relative_to(root).as_posix() != str(PLACE))


def package_url(package, distribution):
    if package["supplier"] != DEBIAN:
        return f"pkg:generic/{package['name']}@{urllib.parse.quote(package['version'])}"
    query = f"arch={package['architecture']}&distro={distribution}"
    if package["source"] != package["name"]:
        query += f"&upstream={urllib.parse.quote(package['source'])}"
    return f"pkg:deb/debian/{urllib.parse.quote(package['name'])}@{urllib.parse.quote(package['version'])}?{query}"


def verification_code(files):
    """Of a package, over its files in the image (section 7.9)."""
    sums = sorted(entry["checksums"][0]["checksumValue"] for entry in files)
    return {"packageVerificationCodeValue": hashlib.sha1("".join(sums).encode()).hexdigest()}


def package_entry(package, files, distribution):
    analyzed = {"packageVerificationCode": verification_code(files)} if files else {}
    return {
        **analyzed, "filesAnalyzed": bool(files),
        "SPDXID": package["id"], "name": package["name"], "versionInfo": package["version"],
        "supplier": package["supplier"],
        "downloadLocation": "NOASSERTION", "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
        "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                          "referenceLocator": package_url(package, distribution)}]}


def relationship(element, kind, related):
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}


def document(root, packages, owners, revision, timestamp, distribution):
    """SPDX document of the tree `root`.

    packages: {name, version, source, architecture, supplier, kind: "own" (one of them) | "library" | "compiled-in"};
    owners: name of the package of each file of files_of(root).
    """
    for package in packages:
        package["id"] = ROOT_PACKAGE if package["kind"] == "own" else spdx_id(package["kind"], package["name"])
    by_name = {package["name"]: package["id"] for package in packages}
    relationships = [relationship("SPDXRef-DOCUMENT", "DESCRIBES", ROOT_PACKAGE)]
    for package in packages:
        if package["kind"] == "compiled-in":  # its code is in the programs
            relationships.append(relationship(ROOT_PACKAGE, "STATIC_LINK", package["id"]))
        elif package["kind"] != "own":
            relationships.append(relationship(ROOT_PACKAGE, "DEPENDS_ON", package["id"]))
    files, contained = [], {name: [] for name in by_name}
    for name in files_of(root):
        files.append({"SPDXID": spdx_id("file", name), "fileName": f"./{name}", "checksums": digests(root / name),
                      "licenseConcluded": "NOASSERTION", "licenseInfoInFiles": ["NOASSERTION"], "copyrightText": "NOASSERTION"})
        contained[owners[name]].append(files[-1])
        relationships.append(relationship(by_name[owners[name]], "CONTAINS", files[-1]["SPDXID"]))
    content = hashlib.sha256(json.dumps([packages, files], sort_keys=True).encode()).hexdigest()
    return {
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "assay-image",
        "documentNamespace": f"urn:assay:image:{revision}:{content}",
        "creationInfo": {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp)),
                         "creators": ["Tool: assay-deploy-docker-sbom.py"]},
        "packages": [package_entry(package, contained[package["name"]], distribution) for package in packages],
        "files": files, "relationships": relationships}


def form_problems(sbom):
    """What SPDX 2.3 wants of the parts that are used here."""
    found = [f"{key}: {sbom.get(key)!r}" for key, wanted in
             (("spdxVersion", "SPDX-2.3"), ("dataLicense", "CC0-1.0"), ("SPDXID", "SPDXRef-DOCUMENT")) if sbom.get(key) != wanted]
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", sbom["creationInfo"]["created"]):
        found.append(f"created: {sbom['creationInfo']['created']!r}")
    elements = [entry["SPDXID"] for entry in sbom["packages"] + sbom["files"]]
    found += [f"{name}: not an SPDX identifier" for name in elements if not re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", name)]
    found += [f"{name}: twice" for name in sorted({name for name in elements if elements.count(name) > 1})]
    for entry in sbom["packages"]:
        found += [f"{entry['SPDXID']}: no {key}" for key in ("name", "versionInfo", "downloadLocation", "supplier") if not entry.get(key)]
        names = {one["relatedSpdxElement"] for one in sbom["relationships"]
                 if (one["spdxElementId"], one["relationshipType"]) == (entry["SPDXID"], "CONTAINS")}
        files = [one for one in sbom["files"] if one["SPDXID"] in names]
        if entry["filesAnalyzed"] != bool(names) or entry.get("packageVerificationCode") != (verification_code(files) if names else None):
            found.append(f"{entry['SPDXID']}: not the code of its {len(names)} files")
    known = {"SPDXRef-DOCUMENT", *elements}
    for entry in sbom["relationships"]:
        found += [f"relationship with {entry[key]}, which is not there" for key in ("spdxElementId", "relatedSpdxElement")
                  if entry[key] not in known]
    return found


def problems(root):
    """Where the document in the tree `root` is no sound SPDX, or says another thing than what lies there."""
    place = root / PLACE
    if not place.is_file():
        return [f"{PLACE}: is not there"]
    sbom = json.loads(place.read_text())
    found = form_problems(sbom)
    listed = {entry["fileName"].removeprefix("./"): entry for entry in sbom["files"]}
    present = set(files_of(root))
    found += [f"{name}: in the image, not in the list" for name in sorted(present - set(listed))]
    found += [f"{name}: in the list, not in the image" for name in sorted(set(listed) - present)]
    found += [f"{name}: other bytes than listed" for name in sorted(present & set(listed))
              if digests(root / name) != listed[name]["checksums"]]
    contained = {entry["relatedSpdxElement"] for entry in sbom["relationships"] if entry["relationshipType"] == "CONTAINS"}
    return found + [f"{name}: of no package" for name, entry in sorted(listed.items()) if entry["SPDXID"] not in contained]


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    lines = problems(pathlib.Path(sys.argv[1]))
    print("\n".join(lines) or "the list is true")
    sys.exit(bool(lines))
