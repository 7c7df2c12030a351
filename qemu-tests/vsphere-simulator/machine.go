package main

import (
	"reflect"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// machine answers some of the calls that are made of a virtual machine. The simulator's own code takes
// virtual machines for its own type, so nothing can stand in their place: the front asks those calls
// of an object of another type and the same value, which is this.
type machine struct {
	vm *simulator.VirtualMachine
	// Held by whoever changes its power state or devices, from beginning to end: the machine's lock in
	// the registry is held only while its properties are read or written.
	operation sync.Mutex
	// What runs behind it, if there are guests and it is on or suspended.
	guest *guest
}

// The types of the objects that answer instead of virtual machines, folders, resource pools and snapshots.
const (
	machineKind  = "SimulatedMachine"
	folderKind   = "SimulatedFolder"
	poolKind     = "SimulatedPool"
	snapshotKind = "SimulatedSnapshot"
)

var machines = struct {
	sync.Mutex
	known map[types.ManagedObjectReference]*machine
}{known: make(map[types.ManagedObjectReference]*machine)}

// machineOf is what answers instead of a virtual machine.
func machineOf(vm *simulator.VirtualMachine) *machine {
	machines.Lock()
	defer machines.Unlock()
	m, ok := machines.known[vm.Self]
	if !ok {
		m = &machine{vm: vm}
		machines.known[vm.Self] = m
		registry().Put(m)
	}
	return m
}

// forget drops it.
func (m *machine) forget() {
	machines.Lock()
	delete(machines.known, m.vm.Self)
	machines.Unlock()
	registry().Remove(m.Reference())
}

// override is the type of what answers a call instead of the object it is made of; "" if nothing does.
func override(c call) string {
	switch c.this.Type {
	case "VirtualMachine":
		if !hasMethod((*machine)(nil), c.method) {
			return ""
		}
		if vm, ok := registry().Get(c.this).(*simulator.VirtualMachine); ok {
			machineOf(vm)
			return machineKind
		}
	case "Folder":
		if !hasMethod((*folder)(nil), c.method) {
			return ""
		}
		if f, ok := registry().Get(c.this).(*simulator.Folder); ok {
			folderOf(f)
			return folderKind
		}
	case "ResourcePool":
		if !hasMethod((*pool)(nil), c.method) {
			return ""
		}
		if p, ok := registry().Get(c.this).(*simulator.ResourcePool); ok {
			poolOf(p)
			return poolKind
		}
	case "VirtualMachineSnapshot":
		if !hasMethod((*snapshot)(nil), c.method) {
			return ""
		}
		if s, ok := registry().Get(c.this).(*simulator.VirtualMachineSnapshot); ok {
			snapshotOf(s)
			return snapshotKind
		}
	}
	return ""
}

// hasMethod tells whether a Go type has a method of the API.
func hasMethod(of interface{}, method string) bool {
	_, ok := reflect.TypeOf(of).MethodByName(goName(method))
	return ok
}

// goName is what the simulator calls a method of the API: PowerOnVM_Task is PowerOnVMTask.
func goName(method string) string {
	if n := len(method) - len("_Task"); n > 0 && method[n:] == "_Task" {
		return method[:n] + "Task"
	}
	return method
}

func (m *machine) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: machineKind, Value: m.vm.Self.Value}
}

// Lock and Unlock: the simulator would hold a lock of it while a call runs.

func (m *machine) Lock()   {}
func (m *machine) Unlock() {}

// locked runs something with the virtual machine's properties to itself. What it calls with the context
// takes the lock for held.
func locked(ctx *simulator.Context, object mo.Reference, do func(*simulator.Context)) {
	own := *ctx
	reference := object.Reference()
	own.Caller = &reference
	registry().WithLock(object, func() { do(&own) })
}

// delegate lets the simulator's own method do it, and takes the task it made for itself away.
func delegate(ctx *simulator.Context, object mo.Reference, do func(*simulator.Context) soap.HasFault) (types.AnyType, types.BaseMethodFault) {
	answer := exclusive(ctx, object, do)
	if fault := answer.Fault(); fault != nil {
		if f, ok := fault.VimFault().(types.BaseMethodFault); ok {
			return nil, f
		}
		return nil, &types.SystemError{Reason: fault.String}
	}
	result := reflect.ValueOf(answer).Elem().FieldByName("Res").Elem().FieldByName("Returnval")
	if !result.IsValid() {
		return nil, nil
	}
	reference, ok := result.Interface().(types.ManagedObjectReference)
	if !ok || reference.Type != "Task" {
		return result.Interface(), nil
	}
	value, fault := waitTask(reference)
	dropTask(reference)
	return value, fault
}

// exclusive lets the simulator's own method do it while nobody reads.
func exclusive(ctx *simulator.Context, object mo.Reference, do func(*simulator.Context) soap.HasFault) (answer soap.HasFault) {
	making.Lock()
	defer making.Unlock()
	locked(ctx, object, func(own *simulator.Context) { answer = do(own) })
	return answer
}

// start makes a task of the machine. Tasks that change it come one after the other.
func (m *machine) start(method string, do work) types.ManagedObjectReference {
	return startTask(m.vm.Self, method, "", func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		m.operation.Lock()
		defer m.operation.Unlock()
		if registry().Get(m.vm.Self) == nil {
			return nil, &types.ManagedObjectNotFound{Obj: m.vm.Self}
		}
		return do(task)
	})
}

// powerState is what it is now.
func (m *machine) powerState() (state types.VirtualMachinePowerState) {
	registry().WithLock(m.vm, func() { state = m.vm.Runtime.PowerState })
	return state
}

// template tells whether it can have no power.
func (m *machine) template() (is bool) {
	registry().WithLock(m.vm, func() { is = m.vm.Config != nil && m.vm.Config.Template })
	return is
}

// set changes properties of it.
func (m *machine) set(properties ...types.PropertyChange) { update(m.vm, properties...) }
