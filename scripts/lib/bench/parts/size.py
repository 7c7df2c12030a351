"""How large what boots is: tether, kernel, ISO."""

from ..figures import Figure

SUBJECT = "tether, bzImage and ISO on disk"


def measurements(artifacts, plan):
    def tether():
        yield Figure(
            "size",
            "tether",
            "bytes",
            [len(artifacts.tether())],
            [artifacts.rust_hello().stat().st_size],
            "Rust hello, same profile",
            judged="ours",
            goal=600e3,
            hoped=300e3,
        )

    def kernel():
        yield Figure(
            "size",
            "bzImage",
            "bytes",
            [artifacts.kernel().stat().st_size],
            [artifacts.debian_kernel().stat().st_size],
            "Debian's cloud kernel (its modules apart)",
            judged="ours",
            goal=4.5e6,
            hoped=3.2e6,
        )

    def iso():
        yield Figure(
            "size",
            "ISO, BIOS and UEFI",
            "bytes",
            [(artifacts.boot_image() / "tether.iso").stat().st_size],
            [artifacts.debian_iso().stat().st_size],
            "the same ISO with Debian's cloud kernel",
            judged="ours",
            goal=7e6,
            hoped=5e6,
        )

    yield ["tether"], tether
    yield ["bzImage"], kernel
    yield ["ISO, BIOS and UEFI"], iso
