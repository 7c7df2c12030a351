"""Machines made by a plain pyVmomi script, as an administrator would write it.

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

    def create(name):
        folder, pool = place()
        files = vim.vm.FileInfo(vmPathName="[LocalDS_0]")
        spec = vim.vm.ConfigSpec(name=name, memoryMB=64, numCPUs=1, guestId="other3xLinux64Guest", files=files)
        task = folder.CreateVM_Task(config=spec, pool=pool)
        WaitForTask(task)
        return task.info.result

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
