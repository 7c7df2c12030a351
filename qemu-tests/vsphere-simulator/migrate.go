package main

import (
	"fmt"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// migration is how a machine is moved to another host: what moves is its place in the inventory and the
// connections of its serial ports. Its guest goes on where it is.
type migration struct {
	// The host's name; "" is any other of the cluster.
	Host string `json:"host"`
	// Whether the target gives up at the end.
	Abort bool `json:"abort"`
	// How long the machine stands still.
	Milliseconds int `json:"ms"`
}

func (m *machine) MigrateVMTask(ctx *simulator.Context, request *types.MigrateVM_Task) soap.HasFault {
	task := m.start("MigrateVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return nil, m.relocate(ctx, request.Host, migration{})
	})
	return &methods.MigrateVM_TaskBody{Res: &types.MigrateVM_TaskResponse{Returnval: task}}
}

func (m *machine) RelocateVMTask(ctx *simulator.Context, request *types.RelocateVM_Task) soap.HasFault {
	task := m.start("RelocateVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if request.Spec.Host != nil {
			if fault := m.relocate(ctx, request.Spec.Host, migration{}); fault != nil {
				return nil, fault
			}
			request.Spec.Host = nil
		}
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.RelocateVMTask(own, request) })
	})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: task}}
}

// relocate moves it; its operation is held.
func (m *machine) relocate(ctx *simulator.Context, to *types.ManagedObjectReference, how migration) types.BaseMethodFault {
	var from types.ManagedObjectReference
	registry().WithLock(m.vm, func() { from = *m.vm.Runtime.Host })
	source, ok := registry().Get(from).(*simulator.HostSystem)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: from}
	}
	destination := otherHost(source, to, how.Host)
	if destination == nil {
		return &types.NoCompatibleHost{}
	}
	for _, port := range m.ports() {
		if err := port.migrate(nextSequence(), how.Abort, time.Duration(how.Milliseconds)*time.Millisecond); err != nil {
			return &types.MigrationFault{VimFault: types.VimFault{MethodFault: types.MethodFault{
				FaultMessage: []types.LocalizableMessage{{Key: "serial port", Message: err.Error()}},
			}}}
		}
	}
	if how.Abort {
		return nil
	}
	registry().RemoveReference(source, &source.Vm, m.vm.Self)
	registry().AddReference(destination, &destination.Vm, m.vm.Self)
	m.set(types.PropertyChange{Name: "runtime.host", Val: destination.Self},
		types.PropertyChange{Name: "summary.runtime.host", Val: destination.Self})
	post(ctx, &types.VmMigratedEvent{VmEvent: vmEvent(m.vm), SourceHost: types.HostEventArgument{
		EntityEventArgument: types.EntityEventArgument{Name: source.Name}, Host: source.Self,
	}})
	return nil
}

// ports are the guest's serial ports that are connected to something.
func (m *machine) ports() []*serialPort {
	var list []*serialPort
	if m.guest != nil {
		for _, port := range m.guest.ports {
			port.mu.Lock()
			if port.target != (target{}) {
				list = append(list, port)
			}
			port.mu.Unlock()
		}
	}
	return list
}

// otherHost is a host by reference, by name, or any other one of the same cluster.
func otherHost(source *simulator.HostSystem, reference *types.ManagedObjectReference, name string) *simulator.HostSystem {
	if reference != nil {
		found, _ := registry().Get(*reference).(*simulator.HostSystem)
		return found
	}
	compute := computeResource(source)
	if compute == nil {
		return nil
	}
	for _, reference := range compute.Host {
		if other, ok := registry().Get(reference).(*simulator.HostSystem); ok {
			if name == other.Name || name == "" && other.Self != source.Self {
				return other
			}
		}
	}
	return nil
}

// migrateNamed moves a machine by its name.
func migrateNamed(name string, how migration) error {
	m := machineNamed(name)
	if m == nil {
		return fmt.Errorf("there is no machine %q", name)
	}
	m.operation.Lock()
	defer m.operation.Unlock()
	if fault := m.relocate(internal(), nil, how); fault != nil {
		return fmt.Errorf("%s %v", faultMessage(fault), fault.GetMethodFault().FaultMessage)
	}
	return nil
}

// machineNamed is a machine by its name or id, nil if there is none.
func machineNamed(name string) *machine {
	for _, entity := range registry().All("VirtualMachine") {
		if vm, ok := entity.(*simulator.VirtualMachine); ok && (vm.Name == name || vm.Self.Value == name) {
			return machineOf(vm)
		}
	}
	return nil
}
