"""Real guests behind virtual machines: tether boots from its ISO and speaks on a serial port.

usage: test_guests.py PROGRAM BOOT_IMAGE_DIRECTORY
"""

import os
import subprocess
import sys
import time

from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

import concentrator
import tether_line
from running import Checks, Simulator, find, machine_spec

DEVICE = vim.vm.device
KEY = "00112233445566778899aabbccddeeff" * 2


def cookie(instance):
    return {"Cookie": instance._stub.cookie.split(";")[0]}  # noqa: SLF001


def serial(key, service, uri):
    return DEVICE.VirtualSerialPort(key=key, yieldOnPoll=True, backing=DEVICE.VirtualSerialPort.URIBackingInfo(
        serviceURI=service, direction="server", proxyURI=uri))


def disk(key, unit, path, parent=None, kilobytes=0, mode="persistent"):
    backing = DEVICE.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode, thinProvisioned=True)
    if parent:
        backing.parent = DEVICE.VirtualDisk.FlatVer2BackingInfo(fileName=parent, diskMode="persistent")
    return DEVICE.VirtualDisk(key=key, controllerKey=-10, unitNumber=unit, capacityInKB=kilobytes, backing=backing)


def devices(name, uri):
    return [
        (DEVICE.ParaVirtualSCSIController(key=-10, busNumber=0, sharedBus="noSharing"), None),
        (disk(-11, 0, f"[LocalDS_0] {name}/{name}.vmdk", parent="[LocalDS_0] images/base.vmdk"), "create"),
        (DEVICE.VirtualCdrom(key=-20, controllerKey=200, unitNumber=0,
                             backing=DEVICE.VirtualCdrom.IsoBackingInfo(fileName="[LocalDS_0] images/tether.iso"),
                             connectable=DEVICE.VirtualDevice.ConnectInfo(
                                 startConnected=True, connected=True, allowGuestControl=False)), None),
        (DEVICE.VirtualVmxnet3(key=-30, backing=DEVICE.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")), None),
        (serial(-40, "console", uri), None),
        (serial(-41, "channel", uri), None),
    ]


class Rig:
    def __init__(self, simulator, instance, boot_image):
        self.simulator, self.instance = simulator, instance
        self.center, self.pool = find(instance, vim.Datacenter), find(instance, vim.ResourcePool)
        self.concentrator = concentrator.Concentrator()
        content = instance.RetrieveContent()
        content.fileManager.MakeDirectory("[LocalDS_0] images", self.center, False)
        with open(os.path.join(boot_image, "tether.iso"), "rb") as iso:
            status, _ = simulator.request(
                "PUT", f"/folder/images/tether.iso?dcPath={self.center.name}&dsName=LocalDS_0", iso.read(), cookie(instance))
        assert status // 100 == 2, status
        WaitForTask(content.virtualDiskManager.CreateVirtualDisk_Task(
            "[LocalDS_0] images/base.vmdk", self.center,
            vim.VirtualDiskManager.FileBackedVirtualDiskSpec(diskType="thin", adapterType="lsiLogic", capacityKb=64 << 10)))

    def create(self, name, **more):
        options = {"guestinfo.tether.channel": "serial:ttyS1", "guestinfo.tether.key": KEY, **more.pop("options", {})}
        task = self.center.vmFolder.CreateVM_Task(machine_spec(
            name, devices(name, self.concentrator.uri),
            extraConfig=[vim.option.OptionValue(key=k, value=v) for k, v in options.items()], **more), self.pool)
        WaitForTask(task)
        return task.info.result

    def port(self, name, service, what=lambda c: True):
        return self.concentrator.wait(
            lambda c: c.said.get("name") == name and c.said.get("service") == service and what(c))

    def asks(self, name, seconds=60, what=lambda c: True):
        """The connection of a machine's channel on which tether answers, None if it does not in time."""
        epochs = set()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            channel = self.concentrator.wait(
                lambda c: not c.ended and c.said.get("name") == name and c.said.get("service") == "channel" and what(c),
                until - time.monotonic())
            if channel is None:
                return None
            packet, epoch = tether_line.question()
            epochs.add(epoch)
            channel.guest(packet)
            if self.concentrator.wait(lambda c: c is channel and epochs & tether_line.answers(c.data), 1):
                return channel
        return None

    def info(self, path):
        return subprocess.run(["qemu-img", "info", "-U", "--backing-chain", os.path.join(self.simulator.datastore, path)],
                              check=True, stdout=subprocess.PIPE, text=True).stdout

    def state(self, machine, state, seconds=30):
        """Whether a machine's power comes to be so in time."""
        until = time.monotonic() + seconds
        while machine.runtime.powerState != state and time.monotonic() < until:
            time.sleep(0.05)
        return machine.runtime.powerState == state

    def events(self, machine):
        spec = vim.event.EventFilterSpec(entity=vim.event.EventFilterSpec.ByEntity(entity=machine, recursion="self"))
        collector = self.instance.RetrieveContent().eventManager.CreateCollectorForEvents(spec)
        collector.SetCollectorPageSize(100)
        try:
            return [type(e).__name__.rsplit(".", 1)[-1] for e in collector.latestPage]
        finally:
            collector.DestroyCollector()


def check_boot(rig, t):
    began = time.monotonic()
    machine = rig.create("one")
    t.true("backing file: " in rig.info("one/one.vmdk"), "a child disk has its parent")
    t.true("virtual size: 64 MiB" in rig.info("one/one.vmdk"), "and its size")
    WaitForTask(machine.PowerOn())
    channel = rig.asks("one")
    t.true(channel, f"tether answers on the channel, {time.monotonic() - began:.1f} s after CreateVM")
    if not channel:
        console = rig.port("one", "console")
        sys.exit(f"the console says {bytes(console.data) if console else None!r}")
    t.equal(channel.said["direction"], "S", "the port's direction")
    t.equal(channel.said["vc"], machine.config.instanceUuid.replace("-", ""), "its machine's instance UUID")
    t.equal(channel.said["bios"], machine.config.uuid.replace("-", ""), "and its machine's UUID")
    t.equal(machine.guest.toolsRunningStatus, "guestToolsRunning", "tools run")
    t.equal(machine.guest.ipAddress, "10.0.2.15", "the guest has an address")
    return machine


def check_suspend(rig, machine, t):
    WaitForTask(machine.Suspend())
    t.equal(machine.runtime.powerState, "suspended", "suspended")
    t.equal(rig.asks("one", 2), None, "a suspended machine does not answer")
    WaitForTask(machine.PowerOn())
    t.true(rig.asks("one"), "it goes on")


def check_hot_plug(rig, machine, t):
    controller = next(d for d in machine.config.hardware.device if isinstance(d, DEVICE.ParaVirtualSCSIController))
    volume = disk(-1, 1, "[LocalDS_0] one/volume.vmdk", kilobytes=8 << 10, mode="independent_persistent")
    volume.controllerKey = controller.key
    change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=volume)
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    t.true("virtual size: 8 MiB" in rig.info("one/volume.vmdk"), "a disk added while it runs is one")
    added = next(d for d in machine.config.hardware.device
                 if isinstance(d, DEVICE.VirtualDisk) and d.backing.fileName.endswith("volume.vmdk"))
    t.true(added.backing.uuid, "and has a UUID")
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=DEVICE.VirtualDisk(key=added.key))
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    t.true("virtual size: 8 MiB" in rig.info("one/volume.vmdk"), "removed, it is still there")
    card = DEVICE.VirtualVmxnet3(key=-1, backing=DEVICE.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"))
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=card)])))
    t.equal(sum(isinstance(d, DEVICE.VirtualVmxnet3) for d in machine.config.hardware.device), 2, "a second vNIC")


def check_migration(rig, machine, t):
    source = rig.port("one", "channel", lambda c: not c.ended)
    on = machine.runtime.host.name
    rig.simulator.control("POST", "/migrate/one", {})
    target = rig.port("one", "channel", lambda c: concentrator.COMPLETE in c.said)
    t.true(target, "a migration is completed by its target")
    t.equal(target and target.said.get("peer"), source.said.get("cookie"), "which knew the source's secret")
    t.true(rig.concentrator.wait(lambda c: c is source and c.ended, 10), "the source's connection ends")
    t.equal(machine.runtime.host.name == on, False, "it is on another host")
    t.true(rig.asks("one", 20, lambda c: c is target), "and speaks from there")
    rig.simulator.control("POST", "/migrate/one", {"abort": True})
    t.true(rig.port("one", "channel", lambda c: c is target and concentrator.ABORT in c.said), "a migration is given up")
    t.true(rig.asks("one", 20, lambda c: c is target), "it stays where it is")
    t.equal(rig.events(machine).count("VmMigratedEvent"), 1, "one migration is in its history")


def stream_of(rig, name):
    """A disk of 8 MiB with something on it, as `streamOptimized`: its file and its bytes."""
    raw, stream = (os.path.join(rig.simulator.directory.name, name + end) for end in (".raw", ".vmdk"))
    with open(raw, "wb") as file:
        file.truncate(8 << 20)
        file.write(b"what is on it" * 1000)
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, stream], check=True)
    with open(stream, "rb") as file:
        return raw, file.read()


def check_import(rig, t):
    """A disk by import lease, as OVF imports do, moved out of its machine."""
    raw, stream = stream_of(rig, "imported")
    image = disk(-11, 0, "[LocalDS_0] upload/upload.vmdk", kilobytes=8 << 10)
    spec = machine_spec("upload", [
        (DEVICE.ParaVirtualSCSIController(key=-10, busNumber=0, sharedBus="noSharing"), None), (image, "create")])
    lease = rig.pool.ImportVApp(vim.vm.VmImportSpec(configSpec=spec), rig.center.vmFolder)
    t.equal(lease.state, "ready", "an import's lease")
    url = lease.info.deviceUrl[0]
    status, _ = rig.simulator.request("POST", url.url.split("*", 1)[1], stream)
    t.equal(status // 100, 2, "its upload")
    machine = lease.info.entity
    lease.HttpNfcLeaseComplete()
    attached = next(d for d in machine.config.hardware.device if isinstance(d, DEVICE.VirtualDisk))
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=attached)
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    manager = rig.instance.RetrieveContent().virtualDiskManager
    WaitForTask(manager.MoveVirtualDisk_Task(
        attached.backing.fileName, rig.center, "[LocalDS_0] images/imported.vmdk", rig.center))
    WaitForTask(machine.Destroy_Task())
    same = subprocess.run(["qemu-img", "compare", "-f", "vmdk", "-F", "raw",
                           os.path.join(rig.simulator.datastore, "images/imported.vmdk"), raw], check=False)
    t.equal(same.returncode, 0, "the disk has what was uploaded, under its new name")

    lease = rig.pool.ImportVApp(vim.vm.VmImportSpec(configSpec=machine_spec("given up")), rig.center.vmFolder)
    machine = lease.info.entity
    lease.HttpNfcLeaseAbort()
    t.raises(vmodl.fault.ManagedObjectNotFound, "an import that is given up leaves no machine", lambda: machine.name)


def check_formats(rig, t):
    """ESXi runs its own formats only."""
    _, stream = stream_of(rig, "foreign")
    status, _ = rig.simulator.request(
        "PUT", f"/folder/images/foreign.vmdk?dcPath={rig.center.name}&dsName=LocalDS_0", stream, cookie(rig.instance))
    t.equal(status // 100, 2, "a stream as a file")
    task = rig.center.vmFolder.CreateVM_Task(machine_spec("foreign", [
        (DEVICE.ParaVirtualSCSIController(key=-10, busNumber=0, sharedBus="noSharing"), None),
        (disk(-11, 0, "[LocalDS_0] foreign/foreign.vmdk", parent="[LocalDS_0] images/foreign.vmdk"), "create")]), rig.pool)
    WaitForTask(task)
    fault = t.raises(vim.fault.GenericVmConfigFault, "does not run", lambda: WaitForTask(task.info.result.PowerOn()))
    t.true(fault and "streamOptimized" in fault.reason, "and says why")
    WaitForTask(task.info.result.Destroy_Task())
    manager = rig.instance.RetrieveContent().virtualDiskManager
    WaitForTask(manager.CopyVirtualDisk_Task(
        "[LocalDS_0] images/foreign.vmdk", rig.center, "[LocalDS_0] images/own.vmdk", rig.center))
    t.true("monolithicFlat" in rig.info("images/own.vmdk"), "a copy of it is the host's own format")
    WaitForTask(manager.DeleteVirtualDisk_Task("[LocalDS_0] images/foreign.vmdk", rig.center))
    t.equal(sorted(n for n in os.listdir(os.path.join(rig.simulator.datastore, "images")) if "foreign" in n), [],
            "a disk of one file is deleted")
    t.raises(vim.fault.FileNotFound, "what is not there is not deleted",
             lambda: WaitForTask(manager.DeleteVirtualDisk_Task("[LocalDS_0] images/foreign.vmdk", rig.center)))
    t.raises(vim.fault.FileNotFound, "a child of what is not there", lambda: WaitForTask(rig.center.vmFolder.CreateVM_Task(
        machine_spec("orphan", [
            (DEVICE.ParaVirtualSCSIController(key=-10, busNumber=0, sharedBus="noSharing"), None),
            (disk(-11, 0, "[LocalDS_0] o/o.vmdk", parent="[LocalDS_0] images/foreign.vmdk"), "create")]), rig.pool)))


def check_clone(rig, machine, t):
    """A copy of a running machine: the guest is the same one, its memory is its own."""
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(
        extraConfig=[vim.option.OptionValue(key="guestinfo.tether.key", value=KEY[::-1])])))
    network = [d for d in machine.config.hardware.device if isinstance(d, DEVICE.VirtualVmxnet3)][0]
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=DEVICE.VirtualVmxnet3(
        key=network.key, connectable=DEVICE.VirtualDevice.ConnectInfo(
            startConnected=False, connected=False, allowGuestControl=True)))
    spec = vim.vm.InstantCloneSpec(
        name="copy", location=vim.vm.RelocateSpec(deviceChange=[change]),
        config=[vim.option.OptionValue(key="copied", value="yes")])
    began = time.monotonic()
    task = machine.InstantClone_Task(spec)
    WaitForTask(task)
    clone = task.info.result
    took = time.monotonic() - began
    t.equal(clone.runtime.powerState, "poweredOn", "a clone runs")
    t.equal(clone.runtime.host, machine.runtime.host, "on its source's host")
    options = {o.key: o.value for o in clone.config.extraConfig}
    t.equal((options.get("copied"), options.get("guestinfo.tether.channel")), ("yes", "serial:ttyS1"), "with both's options")
    t.equal([d.connectable.connected for d in clone.config.hardware.device if isinstance(d, DEVICE.VirtualVmxnet3)],
            [False, True], "the vNIC as the specification says")
    t.true(rig.asks("copy", 20), f"tether answers in it, after {took:.1f} s for the task")
    console = rig.port("copy", "console")
    t.equal(b"Linux version" in bytes(console.data if console else b""), False, "it did not boot")
    t.true(rig.asks("one", 20), "and in its source")
    t.true("backing file: " in rig.info("copy/one.vmdk"), "its disk is its own")
    bad = vim.vm.InstantCloneSpec(name="bad", location=vim.vm.RelocateSpec(deviceChange=[vim.vm.device.VirtualDeviceSpec(
        operation="remove", device=network)]))
    t.raises(vmodl.fault.InvalidArgument, "a clone with other devices", lambda: WaitForTask(machine.InstantClone_Task(bad)))
    WaitForTask(clone.PowerOff())
    t.raises(vim.fault.InvalidPowerState, "a clone of what is off", lambda: WaitForTask(clone.InstantClone_Task(
        vim.vm.InstantCloneSpec(name="none", location=vim.vm.RelocateSpec()))))
    WaitForTask(clone.Destroy_Task())


def check_shutdown(rig, machine, t):
    t.raises(vim.fault.InvalidPowerState, "what is off cannot be shut down", machine.ShutdownGuest)
    WaitForTask(machine.PowerOn())
    t.true(rig.asks("one"), "it boots once more")
    # Whether and when the guest minds the button is its own affair.
    machine.ShutdownGuest()
    t.equal(rig.events(machine).count("VmGuestShutdownEvent"), 1, "its power button is pressed")
    if not rig.state(machine, "poweredOff", 1):
        WaitForTask(machine.PowerOff())


def check_ends(rig, machine, t):
    rig.simulator.control("POST", "/end/one")
    t.true(rig.state(machine, "poweredOff"), "a machine whose guest ends is off")
    t.equal(rig.events(machine).count("VmPoweredOffEvent"), 1, "which is told once")
    t.equal(machine.guest.ipAddress, None, "without an address")
    WaitForTask(machine.PowerOn())
    t.true(rig.asks("one"), "it boots again")
    WaitForTask(machine.PowerOff())
    t.equal(machine.runtime.powerState, "poweredOff", "powered off")


def pattern(rig, path, *commands):
    subprocess.run(["qemu-io", "-f", "vmdk", *(w for c in commands for w in ("-c", c)),
                    os.path.join(rig.simulator.datastore, path)], check=True, stdout=subprocess.DEVNULL)


def check_snapshots(rig, machine, t):
    """A snapshot holds a disk still; without it the disk has what came since."""
    file = lambda: next(d.backing.fileName for d in machine.config.hardware.device  # noqa: E731
                        if isinstance(d, DEVICE.VirtualDisk))
    manager = rig.instance.RetrieveContent().virtualDiskManager

    def take():
        task = machine.CreateSnapshot_Task("s", "", False, False)
        WaitForTask(task)
        return task.info.result

    pattern(rig, "one/one.vmdk", "write -P 1 0 64k")
    first = take()
    t.equal(file(), "[LocalDS_0] one/one-000001.vmdk", "off, a disk goes on in a child")
    pattern(rig, "one/one-000001.vmdk", "write -P 2 0 64k")
    WaitForTask(manager.CopyVirtualDisk_Task("[LocalDS_0] one/one.vmdk", rig.center, "[LocalDS_0] images/held.vmdk", rig.center))
    pattern(rig, "images/held.vmdk", "read -P 1 0 64k")
    WaitForTask(first.RemoveSnapshot_Task(False))
    t.equal(file(), "[LocalDS_0] one/one.vmdk", "and back in itself without the snapshot")
    pattern(rig, "one/one.vmdk", "read -P 2 0 64k")
    t.equal(machine.snapshot, None, "which is gone")

    WaitForTask(machine.PowerOn())
    t.true(rig.asks("one"), "it boots after a snapshot")
    second = take()
    t.equal(file(), "[LocalDS_0] one/one-000001.vmdk", "running, a disk goes on in a child")
    third = take()
    t.equal(file(), "[LocalDS_0] one/one-000002.vmdk", "and that in another")
    t.true(rig.asks("one"), "the guest goes on")
    WaitForTask(third.RemoveSnapshot_Task(False))
    WaitForTask(second.RemoveSnapshot_Task(False))
    t.equal(file(), "[LocalDS_0] one/one.vmdk", "both are merged while it runs")
    t.true(rig.asks("one"), "the guest goes on still")
    WaitForTask(machine.PowerOff())
    pattern(rig, "one/one.vmdk", "read -P 2 0 64k")
    pattern(rig, "images/base.vmdk", "read -P 0 0 64k")
    t.equal(sorted(n for n in os.listdir(os.path.join(rig.simulator.datastore, "one")) if "00000" in n), [],
            "nothing of them is left")


def check_destroyed(rig, machine, t):
    WaitForTask(machine.Destroy_Task())
    t.equal(os.path.exists(os.path.join(rig.simulator.datastore, "one")), False, "destroyed with its files")
    t.true(os.path.exists(os.path.join(rig.simulator.datastore, "images/base.vmdk")), "but not its parent")


def check_esx(rig, machine, t):
    """What only a vCenter can."""
    t.raises(vmodl.fault.NotSupported, "a host clones nothing", lambda: machine.InstantClone_Task(
        vim.vm.InstantCloneSpec(name="none", location=vim.vm.RelocateSpec())))


def emulators(simulator):
    """The QEMU processes on a simulator's datastore."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if b"qemu-system" in words.split(b"\0")[0] and simulator.datastore.encode() in words:
            found.append(process)
    return found


def gone(what, seconds=10):
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    return what()


def main():
    t = Checks()
    everywhere = (check_ends, check_shutdown, check_snapshots, check_destroyed)
    for kind, checks in (("vpx", (check_migration, check_clone)), ("esx", (check_esx,))):
        print(f"--- {kind}")
        with Simulator(sys.argv[1], "--guests", kind=kind) as simulator:
            with simulator.session() as instance:
                rig = Rig(simulator, instance, sys.argv[2])
                check_import(rig, t)
                check_formats(rig, t)
                machine = check_boot(rig, t)
                for check in (check_suspend, check_hot_plug, *checks, *everywhere):
                    check(rig, machine, t)
                WaitForTask(rig.create("left").PowerOn())
            t.equal(len(emulators(simulator)), 1, "a guest runs")
            if kind == "vpx":
                t.equal(simulator.end(), 0, "it ends")
            else:
                simulator.process.kill()
                simulator.end()
            t.equal(gone(lambda: not emulators(simulator)), True, "and takes its guest with it")
    t.end()


main()
