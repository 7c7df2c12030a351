"""What goes wrong on purpose, what is counted, and how changes are told.

usage: test_faults.py PROGRAM
"""

import http.client
import sys
import threading
import time

from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from running import Checks, Simulator, find, machine_spec

SPEC = vmodl.query.PropertyCollector


def rule(simulator, **more):
    return simulator.control("POST", "/rules", more)["id"]


def watch(instance, kind, paths, *objects):
    """A collector of its own with one filter."""
    collector = instance.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(SPEC.FilterSpec(
        objectSet=[SPEC.ObjectSpec(obj=object) for object in objects],
        propSet=[SPEC.PropertySpec(type=kind, pathSet=list(paths))]), False)
    return collector


def wait(collector, version, seconds=10, most=None):
    return collector.WaitForUpdatesEx(version, SPEC.WaitOptions(maxWaitSeconds=seconds, maxObjectUpdates=most))


def objects(update):
    return [o for f in update.filterSet for o in f.objectSet]


def values(update):
    return {c.name: c.val for o in objects(update) for c in o.changeSet}


class Rig:
    def __init__(self, simulator, instance):
        self.simulator, self.instance = simulator, instance
        self.center = find(instance, vim.Datacenter)
        self.pool = find(instance, vim.ResourcePool)

    def create(self, name, **more):
        return self.center.vmFolder.CreateVM_Task(machine_spec(name, **more), self.pool)

    def made(self, name, **more):
        task = self.create(name, **more)
        WaitForTask(task)
        return task.info.result


def check_calls(rig, t):
    rig.simulator.control("DELETE", "/calls")
    machine = rig.made("counted")
    calls = rig.simulator.control("GET", "/calls")
    t.equal(calls.get("CreateVM_Task"), 1, "calls are counted by method")
    t.equal(machine.config.changeVersion != "", True, "a new machine's configuration has a version")


def check_tasks(rig, t):
    simulator = rig.simulator
    rule(simulator, method="CreateVM_Task", do="task-fault", fault="NoPermission", times=1, message="not you")
    fault = t.raises(vim.fault.NoPermission, "a task that fails", lambda: WaitForTask(rig.create("refused")))
    t.equal(fault and fault.msg, "not you", "its message")
    t.raises(LookupError, "nothing was done", lambda: find(rig.instance, vim.VirtualMachine, "refused"))
    WaitForTask(rig.create("allowed"))
    rule(simulator, method="CreateVM_Task", do="task-fault-after", fault="HostCommunication", times=1)
    t.raises(vmodl.fault.HostCommunication, "a task that fails after it acted", lambda: WaitForTask(rig.create("acted")))
    t.equal(find(rig.instance, vim.VirtualMachine, "acted").name, "acted", "what it did is there")
    rule(simulator, method="CreateVM_Task", do="fault", fault="InvalidState", times=1)
    t.raises(vim.fault.InvalidState, "a call that is refused", lambda: rig.create("never"))

    rule(simulator, method="CreateVM_Task", do="slow-task", ms=400, times=1)
    began = time.monotonic()
    task = rig.create("slow")
    t.true(time.monotonic() - began < 0.3, "a slow task's call is not slow")
    collector = watch(rig.instance, vim.Task, ["info.state", "info.progress"], task)
    version, seen, states = "", [], []
    while "success" not in states:
        update = wait(collector, version)
        version = update.version
        found = values(update)
        seen += [found["info.progress"]] if found.get("info.progress") else []
        states += [found["info.state"]] if "info.state" in found else []
    t.true(time.monotonic() - began >= 0.4, "a slow task takes its time")
    t.equal(seen, [25, 50, 75], "its progress")
    t.equal(states, ["running", "success"], "its states")
    simulator.control("DELETE", "/rules")


def check_sessions(rig, t):
    simulator = rig.simulator
    with simulator.session() as other:
        collector = watch(other, vim.Folder, ["name"], rig.center.vmFolder)
        version = wait(collector, "").version
        rule(simulator, method="CurrentTime", do="expire-session", skip=1, times=1)
        other.CurrentTime()
        results = []

        def waiter():
            try:
                results.append(wait(collector, version, 60))
            except vmodl.MethodFault as fault:
                results.append(fault)

        # A connection of its own: pyVmomi's stub takes one per thread.
        thread = threading.Thread(target=waiter)
        thread.start()
        time.sleep(0.2)
        t.raises(vim.fault.NotAuthenticated, "a session that expires at its second call", other.CurrentTime)
        thread.join(20)
        t.equal([type(r) for r in results], [vim.fault.NotAuthenticated], "a wait ends with its session")
    simulator.control("DELETE", "/rules")
    t.true(rig.instance.CurrentTime(), "another's session is untouched")


def check_connections(rig, t):
    simulator = rig.simulator
    lost = (http.client.HTTPException, ConnectionError, OSError)
    rule(simulator, method="CreateVM_Task", do="drop-before", times=1)
    t.raises(lost, "a connection lost before the server acted", lambda: rig.create("before"))
    rule(simulator, method="CreateVM_Task", do="drop-after", times=1)
    t.raises(lost, "a connection lost after the server acted", lambda: rig.create("after"))
    t.raises(LookupError, "the first did nothing", lambda: find(rig.instance, vim.VirtualMachine, "before"))
    t.equal(find(rig.instance, vim.VirtualMachine, "after").name, "after", "the second did")
    rule(simulator, method="Current*", do="delay", ms=300, times=1)
    began = time.monotonic()
    rig.instance.CurrentTime()
    t.true(time.monotonic() - began >= 0.3, "a call that takes longer")
    simulator.control("DELETE", "/rules")
    simulator.control("PUT", "/latency", {"ms": 50})
    began = time.monotonic()
    for _ in range(4):
        rig.instance.CurrentTime()
    t.true(0.2 <= time.monotonic() - began < 1, "a latency for each")
    simulator.control("PUT", "/latency", {"ms": 0})


def check_updates(rig, t):
    one, two = rig.made("one"), rig.made("two")
    collector = watch(rig.instance, vim.VirtualMachine, ["name", "runtime.powerState", "config.extraConfig"], one, two)
    first = wait(collector, "")
    t.equal([(o.obj, o.kind) for o in objects(first)], [(one, "enter"), (two, "enter")], "what is there enters")
    began = time.monotonic()
    t.equal(wait(collector, first.version, 1), None, "nothing new")
    t.true(time.monotonic() - began >= 0.9, "is waited for")
    WaitForTask(one.PowerOn())
    second = wait(collector, first.version)
    t.equal([(o.obj, o.kind, [(c.name, c.val) for c in o.changeSet]) for o in objects(second)],
            [(one, "modify", [("runtime.powerState", "poweredOn")])], "one property of one machine changed")
    again = wait(collector, first.version)
    t.equal(values(again), {"runtime.powerState": "poweredOn"}, "a lost answer can be asked for again")
    third = again.version
    t.raises(vmodl.query.InvalidCollectorVersion, "not for ever", lambda: wait(collector, second.version))

    WaitForTask(two.ReconfigVM_Task(vim.vm.ConfigSpec(name="renamed", extraConfig=[vim.option.OptionValue(key="k", value="1")])))
    update = wait(collector, third)
    t.equal(sorted(values(update)), ["config.extraConfig", "name"], "what a reconfiguration changed")
    WaitForTask(two.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key="k", value="2")])))
    options = {o.key: o.value for o in two.config.extraConfig}
    t.equal(options.get("k"), "2", "an option is replaced")
    t.equal(len(options), len(two.config.extraConfig), "and there once")
    WaitForTask(two.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key="k", value="")])))
    t.equal("k" in {o.key for o in two.config.extraConfig}, False, "an empty value removes it")

    update = wait(collector, update.version)
    WaitForTask(two.PowerOn())
    rule(rig.simulator, method="WaitForUpdatesEx", do="duplicate-updates", times=1)
    update = wait(collector, update.version)
    t.equal([o.obj for o in objects(update)], [two, two], "an update that comes twice")
    rule(rig.simulator, method="WaitForUpdatesEx", do="reorder-updates")
    update = wait(collector, "")
    t.equal([o.obj for o in objects(update)], [two, one], "updates in another order")
    rig.simulator.control("DELETE", "/rules")
    update = wait(collector, "", most=1)
    t.equal((len(objects(update)), update.truncated), (1, True), "as many as were asked for")
    rest = wait(collector, update.version, most=5)
    t.equal((len(objects(rest)), rest.truncated), (1, None), "and the rest")
    WaitForTask(one.PowerOff())
    WaitForTask(one.Destroy_Task())
    update = wait(collector, rest.version)
    t.equal([(o.obj, o.kind) for o in objects(update) if o.kind == "leave"], [(one, "leave")], "what is destroyed leaves")


def check_late_filters(rig, t):
    """A filter that comes while its collector is waited for, beside other changes."""
    machine = rig.made("late")
    collector = watch(rig.instance, vim.VirtualMachine, ["runtime.powerState"], machine)
    state = {"version": wait(collector, "").version, "seen": set()}

    def waiter():
        while not state.get("end"):
            update = wait(collector, state["version"], 1)
            if update:
                state["version"] = update.version
                state["seen"] |= {o.obj for o in objects(update)}

    thread = threading.Thread(target=waiter)
    thread.start()
    missed = []
    for i in range(40):
        task = machine.PowerOn() if i % 2 == 0 else machine.PowerOff()
        collector.CreateFilter(SPEC.FilterSpec(
            objectSet=[SPEC.ObjectSpec(obj=task)], propSet=[SPEC.PropertySpec(type=vim.Task, pathSet=["info.state"])]), False)
        until = time.monotonic() + 5
        while task not in state["seen"] and time.monotonic() < until:
            time.sleep(0.002)
        if task not in state["seen"]:
            missed.append(task)
            break
    state["end"] = True
    thread.join()
    t.equal(missed, [], "each is answered")


def check_configuration(rig, t):
    machine = rig.made("configured", memory=256)
    version = machine.config.changeVersion
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=512, changeVersion=version)))
    t.equal(machine.config.hardware.memoryMB, 512, "a reconfiguration")
    t.equal(machine.config.changeVersion == version, False, "has a version of its own")
    t.raises(vim.fault.ConcurrentAccess, "an old version",
             lambda: WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=768, changeVersion=version))))
    WaitForTask(machine.PowerOn())
    t.raises(vim.fault.MemoryHotPlugNotSupported, "memory while it runs",
             lambda: WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=768))))
    t.raises(vim.fault.DuplicateName, "a name that is taken", lambda: WaitForTask(rig.create("configured")))
    t.raises(vim.fault.InvalidPowerState, "destroying what runs", lambda: WaitForTask(machine.Destroy_Task()))
    card = vim.vm.device.VirtualVmxnet3(
        key=4000, backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"))
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=card)
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    find_card = lambda: [d for d in machine.config.hardware.device if isinstance(d, vim.vm.device.VirtualVmxnet3)]  # noqa: E731
    card = find_card()[0]
    edited = vim.vm.device.VirtualVmxnet3(
        key=card.key, controllerKey=card.controllerKey, unitNumber=card.unitNumber, macAddress=card.macAddress,
        backing=card.backing, connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, connected=False, allowGuestControl=True))
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=edited)
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    t.equal([d.connectable.connected for d in find_card()], [False], "a device is edited without a description")
    change = vim.vm.device.VirtualDeviceSpec(operation="remove", device=vim.vm.device.VirtualVmxnet3(key=card.key))
    WaitForTask(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    t.equal(find_card(), [], "a device is removed by its key")


def check_parallel(rig, t):
    """Many at once, as a driver does it: one collector for all."""
    count = 60
    began = time.monotonic()
    tasks = [rig.create(f"many{i}") for i in range(count)]
    collector = watch(rig.instance, vim.Task, ["info.state"], *tasks)
    version, done = "", set()
    while len(done) < count and time.monotonic() - began < 60:
        update = wait(collector, version)
        version = update.version
        done |= {o.obj for o in objects(update) for c in o.changeSet if c.val in ("success", "error")}
    t.equal(len(done), count, f"{count} machines at once, in {time.monotonic() - began:.2f} s")
    t.equal({task.info.state for task in tasks}, {"success"}, "all made")
    for task in tasks:
        WaitForTask(task.info.result.Destroy_Task())


def main():
    t = Checks()
    for kind in ("vpx", "esx"):
        print(f"--- {kind}")
        with Simulator(sys.argv[1], kind=kind) as simulator, simulator.session() as instance:
            rig = Rig(simulator, instance)
            for check in (check_calls, check_tasks, check_sessions, check_connections, check_updates, check_late_filters,
                          check_configuration, check_parallel):
                check(rig, t)
    t.end()


main()
