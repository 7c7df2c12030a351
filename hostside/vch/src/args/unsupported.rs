//! Flags of `docker run` that `vch run` does not have, each with its reason.

/// Without the leading hyphens.
const FLAGS: &[(&str, &str)] = &[
    (
        "annotation",
        "there is no OCI runtime to read it; use --label",
    ),
    ("attach", "all streams are attached, standard input with -i"),
    ("a", "all streams are attached, standard input with -i"),
    ("blkio-weight", "disks are not shared between VMs' kernels"),
    (
        "blkio-weight-device",
        "disks are not shared between VMs' kernels",
    ),
    (
        "cap-add",
        "the kernel is the container's own: root has every capability",
    ),
    (
        "cap-drop",
        "the kernel is the container's own; drop capabilities inside it",
    ),
    (
        "cgroup-parent",
        "the VM is the boundary; use --memory and --cpus",
    ),
    ("cgroupns", "the VM is the boundary"),
    ("cpu-count", "use --cpus"),
    ("cpu-percent", "use --cpus"),
    ("cpu-period", "use --cpus"),
    ("cpu-quota", "use --cpus"),
    ("cpu-rt-period", "use --cpus"),
    ("cpu-rt-runtime", "use --cpus"),
    ("cpu-shares", "use --cpus"),
    ("c", "use --cpus"),
    ("cpuset-cpus", "use --cpus"),
    ("cpuset-mems", "use --memory"),
    ("detach", "vch run stays in the foreground"),
    ("d", "vch run stays in the foreground"),
    (
        "detach-keys",
        "vch run does not detach; a container whose vch run ended is resumed with --resume",
    ),
    ("device", "the VM has its own devices"),
    ("device-cgroup-rule", "the VM has its own devices"),
    ("device-read-bps", "disks have no rate limits yet"),
    ("device-read-iops", "disks have no rate limits yet"),
    ("device-write-bps", "disks have no rate limits yet"),
    ("device-write-iops", "disks have no rate limits yet"),
    ("disable-content-trust", "images are not pulled yet"),
    ("expose", "every port is reachable; publish one with -p"),
    ("gpus", "the VM has no GPU"),
    ("health-cmd", "health checks need a server"),
    ("health-interval", "health checks need a server"),
    ("health-retries", "health checks need a server"),
    ("health-start-interval", "health checks need a server"),
    ("health-start-period", "health checks need a server"),
    ("health-timeout", "health checks need a server"),
    (
        "no-healthcheck",
        "there are no health checks without a server",
    ),
    ("ip", "user-mode networking has fixed addresses"),
    ("ip6", "user-mode networking has fixed addresses"),
    ("ipc", "the VM is the boundary"),
    ("isolation", "the VM is the isolation"),
    ("kernel-memory", "use --memory"),
    ("link", "networks between containers need a server"),
    ("link-local-ip", "user-mode networking has fixed addresses"),
    ("log-driver", "output goes to this terminal; redirect it"),
    ("log-opt", "output goes to this terminal; redirect it"),
    ("mac-address", "the VM chooses its own"),
    ("memory-reservation", "use --memory"),
    ("memory-swap", "the VM has no swap"),
    ("memory-swappiness", "the VM has no swap"),
    ("mount", "use -v for an ext4 VMDK and --tmpfs for memory"),
    ("network-alias", "networks between containers need a server"),
    ("net-alias", "networks between containers need a server"),
    ("oom-kill-disable", "the kernel is the container's own"),
    ("oom-score-adj", "the kernel is the container's own"),
    (
        "pids-limit",
        "the kernel is the container's own; use --ulimit nproc=N",
    ),
    ("platform", "only linux/amd64 runs"),
    (
        "privileged",
        "the kernel is the container's own: root already has every capability",
    ),
    ("publish-all", "name the ports with -p"),
    ("P", "name the ports with -p"),
    ("pull", "images are not pulled yet; use vch image import"),
    ("quiet", "images are not pulled yet"),
    ("q", "images are not pulled yet"),
    ("restart", "restarting needs a server"),
    ("runtime", "the VM is the runtime"),
    ("security-opt", "the VM is the boundary"),
    ("storage-opt", "the disk's size comes from the image"),
    ("sysctl", "set it with --append sysctl.NAME=VALUE"),
    ("use-api-socket", "there is no server"),
    ("userns", "the VM is the boundary"),
    ("uts", "the VM is the boundary"),
    ("volume-driver", "volumes are ext4 VMDK files"),
    (
        "volumes-from",
        "a volume belongs to one VM; name it with -v",
    ),
];

/// The sentence for a flag as the user wrote it (`--privileged`, `-d`), if Docker has it.
pub fn sentence(flag: &str) -> Option<String> {
    let name = flag.trim_start_matches('-');
    let name = name.split('=').next().unwrap_or(name);
    FLAGS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, why)| {
            let flag = flag.split('=').next().unwrap_or(flag);
            format!("{flag} is not supported: {why}")
        })
}
