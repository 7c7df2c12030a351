package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func (m *machine) PowerOnVMTask(ctx *simulator.Context, request *types.PowerOnVM_Task) soap.HasFault {
	if m.template() {
		return &methods.PowerOnVM_TaskBody{Fault_: simulator.Fault("cannot powerOn a template", &types.InvalidState{})}
	}
	task := m.start("PowerOnVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.PowerOnVMTask(own, request) })
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: task}}
}

func (m *machine) PowerOffVMTask(ctx *simulator.Context, request *types.PowerOffVM_Task) soap.HasFault {
	task := m.start("PowerOffVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.PowerOffVMTask(own, request) })
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: task}}
}

func (m *machine) SuspendVMTask(ctx *simulator.Context, request *types.SuspendVM_Task) soap.HasFault {
	task := m.start("SuspendVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if state := m.powerState(); state != types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: state,
			}
		}
		return delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.SuspendVMTask(own, request) })
	})
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: task}}
}

func (m *machine) DestroyTask(ctx *simulator.Context, request *types.Destroy_Task) soap.HasFault {
	request.This = m.vm.Self
	task := m.start("Destroy_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if state := m.powerState(); state == types.VirtualMachinePowerStatePoweredOn {
			return nil, &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: state,
			}
		}
		value, fault := delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault { return m.vm.DestroyTask(own, request) })
		if fault == nil {
			m.forget()
		}
		return value, fault
	})
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: task}}
}
