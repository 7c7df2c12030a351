"""Writes a sample container image as an OCI image layout directory.

    sample_image.py busybox BINARY OUT    two layers round one static busybox
    sample_image.py debian ROOT OUT [CONFIG]
                                          one layer out of a bootstrapped root directory; CONFIG is JSON
                                          for the image's `config` (OCI image specification, config.md)

The same input gives the same bytes: entries are sorted, owners numeric, times clamped to one date,
gzip headers empty. Formats: OCI image specification 1.0 (image-layout.md, manifest.md, config.md);
layers are pax tar archives, extended attributes as SCHILY.xattr records.
"""

import gzip
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile

# 2025-01-01T00:00:00Z. Later times, such as those of files made by the bootstrap, become this one.
EPOCH = 1735689600
CREATED = "2025-01-01T00:00:00Z"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class HashingWriter:
    """Passes writes on and hashes what passes."""

    def __init__(self, sink):
        self.sink = sink
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data):
        self.sha256.update(data)
        self.size += len(data)
        return self.sink.write(data)

    def flush(self):
        self.sink.flush()


class Layout:
    """An OCI image layout directory under construction, holding one image tagged `latest`."""

    def __init__(self, directory):
        self.directory = directory
        self.blobs = os.path.join(directory, "blobs", "sha256")
        os.makedirs(self.blobs, exist_ok=True)
        self.layers = []
        self.diff_ids = []
        self.history = []

    def add_layer(self, created_by, fill):
        """Adds a layer; `fill` gets a TarFile open for writing."""
        temporary = os.path.join(self.blobs, "layer.new")
        with open(temporary, "wb") as file:
            compressed = HashingWriter(file)
            with gzip.GzipFile("", "wb", 6, compressed, mtime=0) as packed:
                plain = HashingWriter(packed)
                with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                    fill(tar)
        digest = compressed.sha256.hexdigest()
        os.rename(temporary, os.path.join(self.blobs, digest))
        self.layers.append(
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, compressed.size)
        )
        self.diff_ids.append("sha256:" + plain.sha256.hexdigest())
        self.history.append({"created": CREATED, "created_by": created_by})

    def finish(self, config):
        """Writes config, manifest and index. `config` is the OCI config's own `config` object."""
        image = self.add_json(
            "application/vnd.oci.image.config.v1+json",
            {
                "created": CREATED,
                "architecture": "amd64",
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
                "history": self.history,
            },
        )
        manifest = self.add_json(
            "application/vnd.oci.image.manifest.v1+json",
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": image,
                "layers": self.layers,
            },
        )
        manifest["platform"] = {"architecture": "amd64", "os": "linux"}
        manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        self.write_file("oci-layout", to_json({"imageLayoutVersion": "1.0.0"}))
        self.write_file(
            "index.json",
            to_json(
                {
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": [manifest],
                }
            ),
        )

    def add_json(self, media_type, value):
        data = to_json(value)
        digest = hashlib.sha256(data).hexdigest()
        self.write_file(os.path.join("blobs", "sha256", digest), data)
        return descriptor(media_type, digest, len(data))

    def write_file(self, name, data):
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(data)


def descriptor(media_type, digest, size):
    return {"mediaType": media_type, "digest": "sha256:" + digest, "size": size}


def to_json(value):
    return json.dumps(value, separators=(",", ":")).encode()


def entry(name, kind, mode, uid=0, gid=0, linkname=""):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = mode
    info.uid = uid
    info.gid = gid
    info.linkname = linkname
    info.mtime = EPOCH
    return info


def add_directory(tar, name, mode=0o755, uid=0, gid=0):
    tar.addfile(entry(name, tarfile.DIRTYPE, mode, uid, gid))


def add_file(tar, name, data, mode=0o644):
    info = entry(name, tarfile.REGTYPE, mode)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


# --- busybox ---------------------------------------------------------------------------------------

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """\
root:x:0:
daemon:x:1:
tty:x:5:
audio:x:29:daemon
www-data:x:33:daemon
nogroup:x:65534:
"""
SHADOW = "".join(f"{name}:*:20089:0:99999:7:::\n" for name in ("root", "daemon", "www-data", "nobody"))


def busybox(binary, out):
    with open(binary, "rb") as file:
        program = file.read()
    applets = subprocess.run(
        [binary, "--list-full"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    links = sorted({path.lstrip("/") for path in applets} - {"bin/busybox"})

    def programs(tar):
        directories = {"bin", "sbin", "usr", "usr/bin", "usr/sbin"}
        directories.update(os.path.dirname(link) for link in links)
        for directory in sorted(directories - {""}):
            add_directory(tar, directory)
        add_file(tar, "bin/busybox", program, 0o755)
        for link in links:
            tar.addfile(entry(link, tarfile.SYMTYPE, 0o777, linkname="/bin/busybox"))

    def configuration(tar):
        for directory in ("dev", "etc", "home", "proc", "sys", "var"):
            add_directory(tar, directory)
        add_file(tar, "etc/group", GROUP.encode())
        add_file(tar, "etc/passwd", PASSWD.encode())
        add_file(tar, "etc/shadow", SHADOW.encode(), 0o600)
        add_directory(tar, "root", 0o700)
        add_directory(tar, "tmp", 0o1777)
        add_directory(tar, "var/spool")
        add_directory(tar, "var/tmp", 0o1777)
        add_directory(tar, "var/www", uid=33, gid=33)

    layout = Layout(out)
    layout.add_layer("busybox and its applets", programs)
    layout.add_layer("users and directories", configuration)
    layout.finish({"Env": ["PATH=" + PATH], "Cmd": ["sh"]})


# --- debian ----------------------------------------------------------------------------------------

# What differs between two bootstraps of the same packages, or belongs to the machine that ran one.
# A path ending in `/` keeps the directory and loses what is in it.
LEFT_OUT = re.compile(
    r"""^(
        (dev|proc|sys|run|tmp|debootstrap)/.* | debootstrap
      | etc/(hostname|resolv\.conf|\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-)
      | var/cache/apt/(archives/.*\.deb|.*\.bin)
      | var/cache/ldconfig/aux-cache
      | var/cache/debconf/.*-old
      | var/lib/apt/lists/.+
      | var/lib/dpkg/(.*-old|lock.*|triggers/Lock)
      | var/log/.*\.log
      | var/log/apt/.*
    )$""",
    re.VERBOSE,
)


def debian(root, out, config='{"Cmd":["bash"]}'):
    def fill(tar):
        add_tree(tar, root)

    layout = Layout(out)
    layout.add_layer("debootstrap --variant=minbase", fill)
    layout.finish({"Env": ["PATH=" + PATH], **json.loads(config)})


def add_tree(tar, root):
    """Adds everything below `root` but devices and LEFT_OUT, parents before children, sorted."""
    first_name = {}

    def add(relative):
        if LEFT_OUT.match(relative):
            return
        path = os.path.join(root, relative)
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        info = entry(relative, tarfile.REGTYPE, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        info.mtime = min(int(status.st_mtime), EPOCH)
        attributes = extended_attributes(path)
        if attributes:
            info.pax_headers = attributes
        inode = (status.st_dev, status.st_ino)
        if kind == stat.S_IFDIR:
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
            for name in sorted(os.listdir(path)):
                add(os.path.join(relative, name))
        elif kind == stat.S_IFLNK:
            info.type = tarfile.SYMTYPE
            info.linkname = os.readlink(path)
            tar.addfile(info)
        elif kind == stat.S_IFREG and inode in first_name:
            info.type = tarfile.LNKTYPE
            info.linkname = first_name[inode]
            info.pax_headers = {}
            tar.addfile(info)
        elif kind == stat.S_IFREG:
            if status.st_nlink > 1:
                first_name[inode] = relative
            with open(path, "rb") as file:
                data = normalised(relative, file.read())
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        elif kind == stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
            tar.addfile(info)

    for name in sorted(os.listdir(root)):
        add(name)


def normalised(relative, data):
    """The file's content without the day or machine it was made on."""
    if relative == "etc/shadow":
        # Field three is the day of the last password change: the day of the bootstrap.
        return re.sub(rb"(?m)^([^:\n]*:[^:\n]*):\d+:", rb"\g<1>:20089:", data)
    if relative == "etc/machine-id":
        return b""
    return data


def extended_attributes(path):
    found = {}
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        value = os.getxattr(path, name, follow_symlinks=False)
        # The byte values survive tarfile's UTF-8 encoding of header values only as surrogates.
        found["SCHILY.xattr." + name] = value.decode("utf-8", "surrogateescape")
    return found


def main(arguments):
    makers = {"busybox": busybox, "debian": debian}
    if not 3 <= len(arguments) <= 4 or arguments[0] not in makers:
        sys.exit(__doc__)
    maker, *rest = arguments
    makers[maker](*rest)


main(sys.argv[1:])
