"""Compares two trees, given as tars: type, owner, mode, time, attributes, hard links, content.

compare.py REFERENCE SEEN [--recorded-owners] [--no-capabilities]

With --recorded-owners the owner is the one that the attribute user.rootlesscontainers records, as umoci writes it
where a user has one id only: a protobuf message of two numbers, uid and gid.
"""

import hashlib
import sys
import tarfile

MOST_SHOWN = 40
RECORD = "SCHILY.xattr.user.rootlesscontainers"

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "directory",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}


def plain(name):
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def digest(archive, entry):
    sha = hashlib.sha256()
    body = archive.extractfile(entry)
    while chunk := body.read(1 << 20):
        sha.update(chunk)
    return sha.hexdigest()


def recorded(value):
    """The owner in such an attribute. A number that is not there is 0."""
    numbers, data, at = {1: 0, 2: 0}, value.encode("utf-8", "surrogateescape"), 0
    while at < len(data):
        field, number, shift = data[at] >> 3, 0, 0
        at += 1
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        numbers[field] = number
    return (numbers[1], numbers[2])


def tree(path, options):
    entries = {}
    with tarfile.open(path, errorlevel=2) as archive:
        for entry in archive:
            name = plain(entry.name)
            facts = {"type": KINDS.get(entry.type, repr(entry.type))}
            entries[name] = facts
            if entry.islnk():
                facts["link"] = plain(entry.linkname)
                continue  # Everything else is said at the first name.
            if entry.issym():
                facts["link"] = entry.linkname
            else:
                facts["mode"] = oct(entry.mode)
            if name:  # The time of / itself is that of the container's own mount points in it.
                facts["mtime"] = entry.pax_headers.get("mtime", entry.mtime)
            facts["owner"] = (entry.uid, entry.gid)
            record = entry.pax_headers.get(RECORD)
            if "--recorded-owners" in options and record is not None:
                facts["owner"] = recorded(record)
            if entry.ischr() or entry.isblk():
                facts["device"] = (entry.devmajor, entry.devminor)
            if entry.isreg():
                facts["size"] = entry.size
                facts["sha256"] = digest(archive, entry)
            for key, value in entry.pax_headers.items():
                if not key.startswith("SCHILY.") or "--recorded-owners" in options and key == RECORD:
                    continue
                if "--no-capabilities" in options and key == "SCHILY.xattr.security.capability":
                    continue
                facts[key] = value
    return entries


def main():
    options = {word for word in sys.argv[1:] if word.startswith("--")}
    reference, seen = (word for word in sys.argv[1:] if not word.startswith("--"))
    reference, seen = tree(reference, options), tree(seen, options)
    differences = []
    for name in sorted(reference.keys() | seen.keys()):
        right, ours = reference.get(name), seen.get(name)
        if right is None:
            differences.append(f"{name!r}: should not be there: {ours}")
        elif ours is None:
            differences.append(f"{name!r}: is not there, should be {right}")
        else:
            for fact in sorted(right.keys() | ours.keys()):
                if right.get(fact) != ours.get(fact):
                    differences.append(f"{name!r}: {fact} is {ours.get(fact)!r}, should be {right.get(fact)!r}")
    for line in differences[:MOST_SHOWN]:
        print(line, file=sys.stderr)
    if differences:
        print(f"{len(differences)} differences", file=sys.stderr)
        return 1
    counts = {}
    for facts in reference.values():
        for fact in [facts["type"]] + [key for key in facts if key.startswith("SCHILY.")]:
            counts[fact] = counts.get(fact, 0) + 1
    print("equal:", ", ".join(f"{count} {fact}" for fact, count in sorted(counts.items())))
    # A comparison of too little proves too little.
    wanted = {"file": 3000, "hard link": 4, "symlink": 100, "directory": 500, "fifo": 1}
    short = {fact for fact, count in wanted.items() if counts.get(fact, 0) < count}
    if "--no-capabilities" not in options and not any(fact.endswith("security.capability") for fact in counts):
        short.add("security.capability")
    if not any(fact.startswith("SCHILY.xattr.user.") for fact in counts):
        short.add("user attributes")
    if short:
        print(f"too few of: {sorted(short)}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
