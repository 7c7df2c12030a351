"""Machines made by a plain pyVmomi script, as an administrator would write it.

They have the devices of a container's: a child disk on a pvscsi controller, a vmxnet3, two serial ports that
dial out, a CD-ROM drive (without an image in it). Nothing is written into their extraConfig.

usage: vsphere.py URL USER PASSWORD-FILE COUNT THREADS    prints the seconds that creating COUNT machines took
       vsphere.py URL USER PASSWORD-FILE steps CONTROL    prints, as JSON, the requests of one machine's steps
"""

import json
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from pyVim.connect import SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim


def main():
    url, user, password_file, what, more = sys.argv[1:]
    address = urllib.parse.urlsplit(url)
    password = open(password_file).read().strip()
    context = ssl._create_unverified_context()  # A simulator on this machine.

    def connect():
        return SmartConnect(host=address.hostname, port=address.port, user=user, pwd=password, sslContext=context)

    local = threading.local()

    def place():
        """A session of the thread's own: one does not serve two at once."""
        if not hasattr(local, "place"):
            content = connect().RetrieveContent()
            center = content.rootFolder.childEntity[0]
            cluster = center.hostFolder.childEntity[0]
            local.place = center.vmFolder, cluster.resourcePool
        return local.place

    parent = "[LocalDS_0] baseline/parent.vmdk"

    def make_parent():
        """What the disks are children of, once."""
        content = connect().RetrieveContent()
        center = content.rootFolder.childEntity[0]
        content.fileManager.MakeDirectory("[LocalDS_0] baseline", center, True)
        disk = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=64 << 10)
        WaitForTask(content.virtualDiskManager.CreateVirtualDisk_Task(parent, center, disk))

    def devices(name):
        device = vim.vm.device
        backing = device.VirtualDisk.FlatVer2BackingInfo
        connected = device.VirtualDevice.ConnectInfo(startConnected=True, allowGuestControl=False, connected=True)
        child = backing(
            fileName=f"[LocalDS_0] baseline/{name}.vmdk", diskMode="persistent", thinProvisioned=True,
            parent=backing(fileName=parent, diskMode="persistent"))
        all = [
            device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing"),
            device.VirtualVmxnet3(
                key=-3, connectable=connected,
                backing=device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")),
            device.VirtualIDEController(key=200, busNumber=0),
            device.VirtualCdrom(
                key=-4, controllerKey=200, unitNumber=0, connectable=connected,
                backing=device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)),
        ]
        for number, service in enumerate(["console", "channel"]):
            all.append(device.VirtualSerialPort(
                key=-5 - number, yieldOnPoll=True, connectable=connected,
                backing=device.VirtualSerialPort.URIBackingInfo(
                    serviceURI=service, direction="client", proxyURI="telnet://127.0.0.1:2377")))
        changes = [device.VirtualDeviceSpec(operation="add", device=one) for one in all]
        disk = device.VirtualDisk(key=-2, controllerKey=-1, unitNumber=0, capacityInKB=64 << 10, backing=child)
        changes.append(device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
        return changes

    def create(name):
        folder, pool = place()
        files = vim.vm.FileInfo(vmPathName="[LocalDS_0]")
        spec = vim.vm.ConfigSpec(
            name=name, memoryMB=64, numCPUs=1, guestId="other3xLinux64Guest", files=files, deviceChange=devices(name))
        task = folder.CreateVM_Task(config=spec, pool=pool)
        WaitForTask(task)
        return task.info.result

    make_parent()
    if what == "steps":
        counts = {}
        place()

        def step(name, action):
            forget = urllib.request.Request(more + "/calls", method="DELETE")
            urllib.request.urlopen(forget).read()
            result = action()
            counts[name] = sum(json.load(urllib.request.urlopen(more + "/calls")).values())
            return result

        machine = step("create", lambda: create("steps"))
        step("start", lambda: WaitForTask(machine.PowerOnVM_Task()))
        step("stop", lambda: WaitForTask(machine.PowerOffVM_Task()))
        step("rm", lambda: WaitForTask(machine.Destroy_Task()))
        print(json.dumps(counts))
        return
    count, threads = int(what), int(more)
    with ThreadPoolExecutor(threads) as pool:
        # Logging in is not what is measured.
        list(pool.map(lambda _: place() and time.sleep(0.5), range(threads)))
        begun = time.monotonic()
        list(pool.map(lambda number: create(f"bench-{number}"), range(count)))
        print(time.monotonic() - begun)


main()
