"""The simulator without guests, as vCenter and as ESXi: pyVmomi reads what is there.

usage: test_plain.py PROGRAM
"""

import os
import sys

from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from running import PASSWORD, USER, Checks, Simulator, find, machine_spec


def cookie(instance):
    return instance._stub.cookie.split(";")[0]  # noqa: SLF001


def devices():
    """A disk on a pvscsi controller and a vNIC."""
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    disk = vim.vm.device.VirtualDisk(
        key=-2, controllerKey=-1, unitNumber=0, capacityInKB=1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[LocalDS_0] a/a.vmdk", diskMode="persistent", thinProvisioned=True))
    return controller, disk


def nic(network):
    return vim.vm.device.VirtualVmxnet3(
        key=-3, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network))


def check_kind(program, kind, t):
    with Simulator(program, kind=kind) as simulator:
        t.equal(simulator.ready["thumbprint_sha256"], simulator.thumbprint(), f"{kind}: the thumbprint is the certificate's")
        t.raises(vim.fault.InvalidLogin, f"{kind}: a wrong password", lambda: simulator.connect(password="wrong"))
        t.raises(vim.fault.InvalidLogin, f"{kind}: a wrong user", lambda: simulator.connect(user="nobody"))
        with simulator.session() as instance:
            content = instance.RetrieveContent()
            t.equal(content.about.apiType, {"vpx": "VirtualCenter", "esx": "HostAgent"}[kind], f"{kind}: what it is")
            t.equal(content.about.apiVersion, "7.0.3.0", f"{kind}: its version")
            datastore = find(instance, vim.Datastore)
            hosts = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem], True).view
            t.equal(len(hosts), {"vpx": 3, "esx": 1}[kind], f"{kind}: its hosts")
            t.equal(sorted(m.key.name for m in datastore.host), sorted(h.name for h in hosts), f"{kind}: who mounts the datastore")
            for host in hosts:
                t.equal([d.name for d in host.datastore], ["LocalDS_0"], f"{kind}: the datastore of {host.name}")
            center = find(instance, vim.Datacenter)
            t.equal([d.name for d in center.datastore], ["LocalDS_0"], f"{kind}: one datastore")
            names = sorted(n.name for n in center.network)
            t.equal("VM Network" in names, True, f"{kind}: VM Network among {names}")
            if kind == "vpx":
                t.equal({"DC0_DVPG0", "DC0_DVPG1"} <= set(names), True, "vpx: two port groups")
                t.equal(find(instance, vim.ClusterComputeResource).name, "DC0_C0", "vpx: one cluster")
            check_folder(simulator, instance, center, kind, t)
            check_machine(simulator, instance, center, kind, t)
        t.equal(simulator.end(), 0, f"{kind}: ends when its standard input does")


def check_folder(simulator, instance, center, kind, t):
    query = f"?dcPath={center.name}&dsName=LocalDS_0"
    session = {"Cookie": cookie(instance)}
    t.equal(simulator.request("PUT", "/folder/x.iso" + query, b"x")[0], 401, f"{kind}: no upload without a session")
    t.equal(simulator.request("PUT", "/folder/no/x.iso" + query, b"x", session)[0], 404, f"{kind}: no upload into no directory")
    instance.content.fileManager.MakeDirectory("[LocalDS_0] iso", center, False)
    t.equal(simulator.request("PUT", "/folder/iso/x.iso" + query, b"0123456789", session)[0] // 100, 2, f"{kind}: an upload")
    t.equal(simulator.request("GET", "/folder/iso/x.iso" + query, None, {**session, "Range": "bytes=2-4"}),
            (206, b"234"), f"{kind}: a range of it")


def check_machine(simulator, instance, center, kind, t):
    pool = find(instance, vim.ResourcePool)
    create = lambda *devices: center.vmFolder.CreateVM_Task(machine_spec("a", devices), pool)  # noqa: E731
    controller, disk = devices()
    bad = t.raises(vim.fault.InvalidDeviceBacking, f"{kind}: an unknown port group",
                   lambda: WaitForTask(create((nic("no such network"), None))))
    t.equal(bad and bad.deviceIndex, 0, f"{kind}: which device's")
    task = create((controller, None), (disk, "create"), (nic("VM Network"), None))
    WaitForTask(task)
    machine = task.info.result
    t.equal(machine.name, "a", f"{kind}: its name")
    t.equal(os.path.exists(os.path.join(simulator.datastore, "a/a.vmx")), True, f"{kind}: its file on the datastore")
    search = instance.content.searchIndex
    for instance_uuid, uuid in ((False, machine.config.uuid), (True, machine.config.instanceUuid)):
        found = search.FindByUuid(None, uuid, True, instance_uuid)
        t.equal((type(found), found), (type(machine), machine), f"{kind}: by its UUID, instance {instance_uuid}")
    t.equal(search.FindByUuid(None, "00000000-0000-0000-0000-000000000000", True, False), None, f"{kind}: by nobody's UUID")
    WaitForTask(machine.PowerOn())
    t.equal(search.FindByUuid(None, machine.config.uuid, True, False), machine, f"{kind}: by its UUID when it is on")
    t.equal(machine.runtime.powerState, "poweredOn", f"{kind}: powered on")
    t.raises(vim.fault.InvalidPowerState, f"{kind}: powered on again", lambda: WaitForTask(machine.PowerOn()))
    WaitForTask(machine.PowerOff())
    WaitForTask(machine.Destroy())
    t.raises(vmodl.fault.ManagedObjectNotFound, f"{kind}: destroyed", lambda: machine.name)


def check_action(program, t):
    body = ('<?xml version="1.0"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body>'
            '<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this>'
            "</RetrieveServiceContent></e:Body></e:Envelope>")
    with Simulator(program, "--api-version", "6.7.3") as simulator:
        for action, status in (("urn:vim25/6.7.3", 200), ("urn:vim25/5.5", 200), ("urn:vim25/7.0.3.0", 500), ("", 500)):
            found = simulator.request("POST", "/sdk", body, {"SOAPAction": f'"{action}"', "Content-Type": "text/xml"})
            t.equal(found[0], status, f"SOAPAction {action!r}")
        versions = simulator.request("GET", "/sdk/vimServiceVersions.xml")[1].decode()
        t.equal("<version>6.7.3</version>" in versions and "7.0" not in versions, True, "versions up to its own")


def main():
    t = Checks()
    for kind in ("vpx", "esx"):
        check_kind(sys.argv[1], kind, t)
    check_action(sys.argv[1], t)
    t.end()


main()
