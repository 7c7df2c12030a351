package main

import (
	"log"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The address of a guest on QEMU's user-mode network (its manual, "Using the user mode network stack").
const guestAddress = "10.0.2.15"

func (m *machine) PowerOnVMTask(ctx *simulator.Context, request *types.PowerOnVM_Task) soap.HasFault {
	if m.template() {
		return &methods.PowerOnVM_TaskBody{Fault_: simulator.Fault("cannot powerOn a template", &types.InvalidState{})}
	}
	task := m.start("PowerOnVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return nil, m.powerOn(ctx, request)
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: task}}
}

// powerOn starts its guest, or lets a suspended one go on.
func (m *machine) powerOn(ctx *simulator.Context, request *types.PowerOnVM_Task) types.BaseMethodFault {
	if state := m.powerState(); state == types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state,
		}
	}
	if host.enabled && m.guest != nil {
		if _, err := m.guest.monitor.execute("cont", nil); err != nil {
			return &types.GenericVmConfigFault{Reason: err.Error()}
		}
	} else if host.enabled {
		hardware, err := readHardware(m.vm)
		for _, disk := range hardware.disks {
			for _, file := range append([]string{disk.file}, disk.parents...) {
				if err == nil {
					err = checkDisk(file)
				}
			}
		}
		if err == nil {
			err = m.boot(hardware, nil, nil)
		}
		if err != nil {
			return &types.GenericVmConfigFault{Reason: err.Error()}
		}
	}
	_, fault := delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.PowerOnVMTask(own, request) })
	if fault != nil {
		m.stopGuest()
	}
	return fault
}

// boot starts the guest; its operation is held.
func (m *machine) boot(h hardware, slots map[int]int, memory *os.File) error {
	started, err := startGuest(h, slots, memory, m.toolsRun)
	if err != nil {
		return err
	}
	m.guest = started
	go func() {
		<-started.done
		if !started.wasAsked() {
			m.guestEnded(started)
		}
	}()
	return nil
}

// toolsRun says of the guest what its tools would: they run, and what its address is. It is told when
// the guest first writes to a serial port.
func (m *machine) toolsRun() {
	go registry().WithLock(m.vm, func() {
		changes := []types.PropertyChange{
			{Name: "guest.toolsStatus", Val: types.VirtualMachineToolsStatusToolsOk},
			{Name: "guest.toolsRunningStatus", Val: string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)},
			{Name: "guest.guestState", Val: string(types.VirtualMachineGuestStateRunning)},
			{Name: "guestHeartbeatStatus", Val: types.ManagedEntityStatusGreen},
			{Name: "summary.guest.toolsRunningStatus", Val: string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)},
		}
		// On a network of all guests it is the one that they are given there.
		if len(m.vm.Guest.Net) > 0 && host.lan == nil {
			net := append([]types.GuestNicInfo(nil), m.vm.Guest.Net...)
			net[0].IpAddress = []string{guestAddress}
			changes = append(changes,
				types.PropertyChange{Name: "guest.net", Val: net},
				types.PropertyChange{Name: "guest.ipAddress", Val: guestAddress},
				types.PropertyChange{Name: "summary.guest.ipAddress", Val: guestAddress})
		}
		registry().Update(m.vm, changes)
	})
}

// toolsStop takes back what they said.
func (m *machine) toolsStop() {
	registry().WithLock(m.vm, func() {
		net := append([]types.GuestNicInfo(nil), m.vm.Guest.Net...)
		for i := range net {
			net[i].IpAddress = nil
		}
		registry().Update(m.vm, []types.PropertyChange{
			{Name: "guest.toolsRunningStatus", Val: string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)},
			{Name: "guest.guestState", Val: string(types.VirtualMachineGuestStateNotRunning)},
			{Name: "guest.ipAddress", Val: ""},
			{Name: "guest.net", Val: net},
			{Name: "guestHeartbeatStatus", Val: types.ManagedEntityStatusGray},
			{Name: "summary.guest.ipAddress", Val: ""},
			{Name: "summary.guest.toolsRunningStatus", Val: string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)},
		})
	})
}

// guestEnded says that a machine is off because its guest ended by itself.
func (m *machine) guestEnded(g *guest) {
	m.operation.Lock()
	defer m.operation.Unlock()
	if m.guest != g {
		return
	}
	m.guest = nil
	_ = os.Rename(filepath.Join(g.directory, "log"), filepath.Join(host.scratch, "log.last"))
	_ = os.RemoveAll(g.directory)
	m.toolsStop()
	if _, fault := delegate(internal(), m.vm, func(own *simulator.Context) soap.HasFault {
		return m.vm.PowerOffVMTask(own, &types.PowerOffVM_Task{This: m.vm.Self})
	}); fault != nil {
		log.Printf("%s: its guest ended: %T", m.vm.Self, fault)
	}
}

// stopGuest ends the guest if there is one; its operation is held.
func (m *machine) stopGuest() {
	if m.guest == nil {
		return
	}
	m.guest.end()
	m.guest = nil
	m.toolsStop()
}

func (m *machine) PowerOffVMTask(ctx *simulator.Context, request *types.PowerOffVM_Task) soap.HasFault {
	task := m.start("PowerOffVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		m.stopGuest()
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.PowerOffVMTask(own, request) })
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: task}}
}

func (m *machine) SuspendVMTask(ctx *simulator.Context, request *types.SuspendVM_Task) soap.HasFault {
	task := m.start("SuspendVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if fault := m.mustRun(); fault != nil {
			return nil, fault
		}
		if m.guest != nil {
			if _, err := m.guest.monitor.execute("stop", nil); err != nil {
				return nil, &types.GenericVmConfigFault{Reason: err.Error()}
			}
		}
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.SuspendVMTask(own, request) })
	})
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: task}}
}

// mustRun is the fault of what only a running machine can do.
func (m *machine) mustRun() types.BaseMethodFault {
	if state := m.powerState(); state != types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state,
		}
	}
	return nil
}

func (m *machine) ResetVMTask(ctx *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	task := m.start("ResetVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if fault := m.mustRun(); fault != nil {
			return nil, fault
		}
		if m.guest != nil {
			if _, err := m.guest.monitor.execute("system_reset", nil); err != nil {
				return nil, &types.GenericVmConfigFault{Reason: err.Error()}
			}
		}
		post(ctx, &types.VmResettingEvent{VmEvent: vmEvent(m.vm)})
		m.set(types.PropertyChange{Name: "summary.runtime.bootTime", Val: time.Now()},
			types.PropertyChange{Name: "runtime.bootTime", Val: time.Now()})
		return nil, nil
	})
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: task}}
}

// ShutdownGuest presses the power button; the guest's end is told when it comes. Without a guest it is
// the simulator's, which is off at once.
func (m *machine) ShutdownGuest(ctx *simulator.Context, request *types.ShutdownGuest) soap.HasFault {
	if !host.enabled {
		m.operation.Lock()
		defer m.operation.Unlock()
		if fault := m.mustRun(); fault != nil {
			return &methods.ShutdownGuestBody{Fault_: simulator.Fault("", fault)}
		}
		return exclusive(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.ShutdownGuest(own, request) })
	}
	if fault := m.button(ctx, "system_powerdown", &types.VmGuestShutdownEvent{VmEvent: vmEvent(m.vm)}); fault != nil {
		return &methods.ShutdownGuestBody{Fault_: simulator.Fault("", fault)}
	}
	return &methods.ShutdownGuestBody{Res: &types.ShutdownGuestResponse{}}
}

func (m *machine) RebootGuest(ctx *simulator.Context, _ *types.RebootGuest) soap.HasFault {
	if fault := m.button(ctx, "system_reset", &types.VmGuestRebootEvent{VmEvent: vmEvent(m.vm)}); fault != nil {
		return &methods.RebootGuestBody{Fault_: simulator.Fault("", fault)}
	}
	return &methods.RebootGuestBody{Res: &types.RebootGuestResponse{}}
}

// button presses a button of a running machine.
func (m *machine) button(ctx *simulator.Context, command string, event types.BaseEvent) types.BaseMethodFault {
	m.operation.Lock()
	defer m.operation.Unlock()
	if fault := m.mustRun(); fault != nil {
		return fault
	}
	if m.guest != nil {
		if _, err := m.guest.monitor.execute(command, nil); err != nil {
			return &types.SystemError{Reason: err.Error()}
		}
	}
	post(ctx, event)
	return nil
}

func (m *machine) DestroyTask(ctx *simulator.Context, request *types.Destroy_Task) soap.HasFault {
	request.This = m.vm.Self
	task := m.start("Destroy_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if state := m.powerState(); state == types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: state,
			}
		}
		m.stopGuest()
		value, fault := delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.DestroyTask(own, request) })
		if fault == nil {
			m.forget()
		}
		return value, fault
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: task}}
}

func (m *machine) UnregisterVM(ctx *simulator.Context, request *types.UnregisterVM) soap.HasFault {
	m.operation.Lock()
	defer m.operation.Unlock()
	request.This = m.vm.Self
	answer := exclusive(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.UnregisterVM(own, request) })
	if answer.Fault() == nil {
		m.stopGuest()
		m.forget()
	}
	return answer
}

// post posts an event.
func post(ctx *simulator.Context, event types.BaseEvent) {
	events := registry().EventManager()
	registry().WithLock(events, func() {
		own := *ctx
		reference := events.Self
		own.Caller = &reference
		events.PostEvent(&own, &types.PostEvent{EventToPost: event})
	})
}

// vmEvent says which machine an event is about, and where that is.
func vmEvent(vm *simulator.VirtualMachine) (event types.VmEvent) {
	registry().WithLock(vm, func() {
		event.Vm = &types.VmEventArgument{
			EntityEventArgument: types.EntityEventArgument{Name: vm.Name}, Vm: vm.Self,
		}
		if vm.Runtime.Host == nil {
			return
		}
		if center := datacenterOf(vm); center != nil {
			event.Datacenter = &types.DatacenterEventArgument{
				EntityEventArgument: types.EntityEventArgument{Name: center.Name}, Datacenter: center.Self,
			}
		}
		if on, ok := registry().Get(*vm.Runtime.Host).(*simulator.HostSystem); ok {
			event.Host = &types.HostEventArgument{
				EntityEventArgument: types.EntityEventArgument{Name: on.Name}, Host: on.Self,
			}
			if compute := computeResource(on); compute != nil {
				event.ComputeResource = &types.ComputeResourceEventArgument{
					EntityEventArgument: types.EntityEventArgument{Name: compute.Name}, ComputeResource: compute.Self,
				}
			}
		}
	})
	return event
}

// sequences counts migrations.
var sequences uint64

// nextSequence names a migration.
func nextSequence() []byte {
	n := atomic.AddUint64(&sequences, 1)
	return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}
