"""What pyVmomi, which did not make it, says of the machine of a container: a second opinion.

usage: read_back.py URL USER PASSWORD-FILE ID    prints JSON
"""

import json
import ssl
import sys
import urllib.parse

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim


def written(machine, key):
    """What the driver wrote on it, in one piece: after the number of pieces, with %XX for what is quoted."""
    values = [option.value for option in machine.config.extraConfig if option.key == key]
    return urllib.parse.unquote(values[0].partition(":")[2]) if values else ""


def plain(machine, key):
    return next((option.value for option in machine.config.extraConfig if option.key == key), "")


def facts(machine):
    config = machine.config
    devices = config.hardware.device
    of = lambda kind: [device for device in devices if isinstance(device, kind)]
    (disk,) = of(vim.vm.device.VirtualDisk)
    (controller,) = [device for device in devices if device.key == disk.controllerKey]
    backing, parents = disk.backing, 0
    while getattr(backing, "parent", None):
        backing, parents = backing.parent, parents + 1
    return {
        "name": machine.name,
        "pool": machine.resourcePool.name,
        "folder": machine.parent.name,
        "power": machine.runtime.powerState,
        "uuids": [config.uuid, config.instanceUuid],
        "memory_mb": config.hardware.memoryMB,
        "cpus": config.hardware.numCPU,
        "hot_add": [config.cpuHotAddEnabled, config.memoryHotAddEnabled],
        "disk_controller": type(controller).__name__.rpartition(".")[2],
        "disk_parents": parents,
        "image": backing.fileName,
        "cdrom": [device.backing.fileName for device in of(vim.vm.device.VirtualCdrom)],
        "vnics": [
            [type(device).__name__.rpartition(".")[2], device.macAddress, device.backing.deviceName]
            for device in of(vim.vm.device.VirtualEthernetCard)
        ],
        "serial": [
            [device.backing.direction, device.backing.serviceURI, device.backing.proxyURI]
            for device in of(vim.vm.device.VirtualSerialPort)
        ],
        "began": json.loads(written(machine, "vch.began") or "null"),
        "key": plain(machine, "guestinfo.tether.key"),
        "identity": plain(machine, "guestinfo.tether.identity"),
        "options": sorted(option.key for option in config.extraConfig),
    }


def main():
    url, user, password_file, identity = sys.argv[1:]
    address = urllib.parse.urlsplit(url)
    password = open(password_file, encoding="ascii").read().strip()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    instance = SmartConnect(host=address.hostname, port=address.port, user=user, pwd=password, sslContext=context)
    try:
        content = instance.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view
        ours = [machine for machine in view if written(machine, "vch.owner")]
        templates = [machine for machine in ours if written(machine, "vch.role") == "template"]
        (machine,) = [machine for machine in ours if machine.config.uuid == identity]
        found = facts(machine)
        found["templates"] = [
            [machine.name, machine.runtime.powerState, plain(machine, "guestinfo.tether.key")] for machine in templates
        ]
        print(json.dumps(found))
    finally:
        Disconnect(instance)


main()
