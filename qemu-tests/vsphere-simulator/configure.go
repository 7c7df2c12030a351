package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folder answers CreateVM_Task instead of a folder.
type folder struct {
	of *simulator.Folder
}

func folderOf(of *simulator.Folder) *folder {
	f := &folder{of}
	if known, ok := registry().Get(f.Reference()).(*folder); ok {
		return known
	}
	registry().Put(f)
	return f
}

func (f *folder) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: folderKind, Value: f.of.Self.Value}
}

// Lock and Unlock: the simulator would hold a lock of it while a call runs.

func (f *folder) Lock()   {}
func (f *folder) Unlock() {}

func (f *folder) CreateVMTask(ctx *simulator.Context, request *types.CreateVM_Task) soap.HasFault {
	request.This = f.of.Self
	task := startTask(f.of.Self, "CreateVM_Task", "", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		reference, fault := createMachine(ctx, f.of, request)
		if fault != nil {
			return nil, fault
		}
		return reference, nil
	})
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: task}}
}

// createMachine is the simulator's CreateVM_Task, but it refuses what a server refuses, and makes files
// for disks that are to be read.
func createMachine(ctx *simulator.Context, in *simulator.Folder, request *types.CreateVM_Task) (types.ManagedObjectReference, types.BaseMethodFault) {
	var none types.ManagedObjectReference
	spec := &request.Config
	var duplicate mo.Entity
	locked(ctx, in, func(*simulator.Context) { duplicate = registry().FindByName(spec.Name, in.ChildEntity) })
	if duplicate != nil {
		return none, &types.DuplicateName{Name: spec.Name, Object: duplicate.Reference()}
	}
	if fault := checkDevices(in, spec, nil); fault != nil {
		return none, fault
	}
	if fault := prepareDisks(spec); fault != nil {
		return none, fault
	}
	spec.ExtraConfig = mergeExtraConfig(nil, spec.ExtraConfig)
	value, fault := delegate(ctx, in, func(own *simulator.Context) soap.HasFault { return in.CreateVMTask(own, request) })
	if fault != nil {
		return none, fault
	}
	vm, ok := registry().Get(value.(types.ManagedObjectReference)).(*simulator.VirtualMachine)
	if !ok {
		return none, &types.SystemError{Reason: "the new virtual machine is gone"}
	}
	m := machineOf(vm)
	if fault := fillDisks(spec); fault != nil {
		_, _ = delegate(ctx, vm, func(own *simulator.Context) soap.HasFault {
			return vm.DestroyTask(own, &types.Destroy_Task{This: vm.Self})
		})
		m.forget()
		return none, fault
	}
	locked(ctx, vm, func(own *simulator.Context) { vm.RefreshStorageInfo(own, nil) })
	m.bumpVersion()
	return vm.Self, nil
}

// bumpVersion gives the configuration a new version.
func (m *machine) bumpVersion() {
	m.set(types.PropertyChange{
		Name: "config.changeVersion", Val: time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"),
	})
}

func (m *machine) ReconfigVMTask(ctx *simulator.Context, request *types.ReconfigVM_Task) soap.HasFault {
	request.This = m.vm.Self
	task := m.start("ReconfigVM_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		return nil, m.reconfigure(ctx, request)
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task}}
}

func (m *machine) reconfigure(ctx *simulator.Context, request *types.ReconfigVM_Task) types.BaseMethodFault {
	spec := &request.Spec
	var version string
	var devices object.VirtualDeviceList
	var extra []types.BaseOptionValue
	var running, hotMemory, hotProcessors bool
	var memory int64
	var processors int32
	registry().WithLock(m.vm, func() {
		version = m.vm.Config.ChangeVersion
		devices = append(devices, m.vm.Config.Hardware.Device...)
		extra = m.vm.Config.ExtraConfig
		running = m.vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
		hotMemory = isTrue(m.vm.Config.MemoryHotAddEnabled)
		hotProcessors = isTrue(m.vm.Config.CpuHotAddEnabled)
		memory = int64(m.vm.Config.Hardware.MemoryMB)
		processors = m.vm.Config.Hardware.NumCPU
	})
	switch {
	case spec.ChangeVersion != "" && spec.ChangeVersion != version:
		return &types.ConcurrentAccess{}
	case running && spec.MemoryMB != 0 && spec.MemoryMB != memory && !hotMemory:
		return &types.MemoryHotPlugNotSupported{}
	case running && spec.NumCPUs != 0 && spec.NumCPUs != processors && !hotProcessors:
		return &types.CpuHotPlugNotSupported{}
	}
	if fault := checkDevices(m.vm, spec, devices); fault != nil {
		return fault
	}
	if fault := prepareDisks(spec); fault != nil {
		return fault
	}
	before, err := readHardware(m.vm)
	if err != nil {
		return &types.GenericVmConfigFault{Reason: err.Error()}
	}
	if fault := m.unplug(spec, before); fault != nil {
		return fault
	}
	// The simulator would append.
	merged := mergeExtraConfig(extra, spec.ExtraConfig)
	spec.ExtraConfig = special(spec.ExtraConfig)
	if _, fault := delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault {
		return m.vm.ReconfigVMTask(own, request)
	}); fault != nil {
		return fault
	}
	m.set(types.PropertyChange{Name: "config.extraConfig", Val: merged})
	m.bumpVersion()
	changed.touch(m.vm.Self)
	if fault := fillDisks(spec); fault != nil {
		return fault
	}
	after, err := readHardware(m.vm)
	if err != nil {
		return &types.GenericVmConfigFault{Reason: err.Error()}
	}
	return m.plug(before, after)
}

// isSpecial tells whether an option is one that the simulator acts on: it sets a property.
func isSpecial(option types.BaseOptionValue) bool {
	return strings.HasPrefix(option.GetOptionValue().Key, "SET.")
}

// special are the options that the simulator acts on.
func special(options []types.BaseOptionValue) []types.BaseOptionValue {
	var kept []types.BaseOptionValue
	for _, option := range options {
		if isSpecial(option) {
			kept = append(kept, option)
		}
	}
	return kept
}

// mergeExtraConfig is what options become by others: one of the same key is replaced, and removed by an
// empty value.
func mergeExtraConfig(have, more []types.BaseOptionValue) []types.BaseOptionValue {
	merged := append([]types.BaseOptionValue{}, have...)
	for _, option := range more {
		value := option.GetOptionValue()
		kept := merged[:0]
		for _, other := range merged {
			if other.GetOptionValue().Key != value.Key {
				kept = append(kept, other)
			}
		}
		merged = kept
		if value.Value != nil && fmt.Sprint(value.Value) != "" {
			merged = append(merged, option)
		}
	}
	return merged
}

func isTrue(flag *bool) bool { return flag != nil && *flag }

// checkDevices refuses what the simulator would fall over, and puts in what it takes for granted:
// devices are those there are.
func checkDevices(in mo.Entity, spec *types.VirtualMachineConfigSpec, devices object.VirtualDeviceList) types.BaseMethodFault {
	networks := networksOf(in)
	for i, change := range spec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec()
		property := fmt.Sprintf("configSpec.deviceChange[%d].device", i)
		if device.Device == nil {
			return &types.InvalidDeviceSpec{
				InvalidVmConfig: types.InvalidVmConfig{Property: property}, DeviceIndex: int32(i),
			}
		}
		base := device.Device.GetVirtualDevice()
		switch device.Operation {
		case types.VirtualDeviceConfigSpecOperationRemove:
			there := devices.FindByKey(base.Key)
			if there == nil {
				return &types.InvalidDeviceSpec{
					InvalidVmConfig: types.InvalidVmConfig{Property: property + ".key"}, DeviceIndex: int32(i),
				}
			}
			device.Device = there
			continue
		case types.VirtualDeviceConfigSpecOperationEdit:
			if base.DeviceInfo == nil {
				base.DeviceInfo = &types.Description{}
			}
		}
		if card, ok := device.Device.(types.BaseVirtualEthernetCard); ok && !networks.has(card.GetVirtualEthernetCard().Backing) {
			return &types.InvalidDeviceBacking{InvalidDeviceSpec: types.InvalidDeviceSpec{
				InvalidVmConfig: types.InvalidVmConfig{Property: property + ".backing"}, DeviceIndex: int32(i),
			}}
		}
	}
	return nil
}

// networks are those of a datacenter: by name, and distributed port groups by key.
type networks struct {
	names, keys map[string]bool
}

func (n networks) has(backing types.BaseVirtualDeviceBackingInfo) bool {
	switch b := backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		return n.names[b.DeviceName]
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		return n.keys[b.Port.PortgroupKey]
	}
	return false
}

func networksOf(in mo.Entity) networks {
	found := networks{make(map[string]bool), make(map[string]bool)}
	if center := datacenterOf(in); center != nil {
		for _, reference := range center.Network {
			switch network := registry().Get(reference).(type) {
			case *mo.Network:
				found.names[network.Name] = true
			case *simulator.DistributedVirtualPortgroup:
				found.keys[reference.Value] = true
			}
		}
	}
	return found
}

// datacenterOf is the datacenter that something is in, nil if it is in none.
func datacenterOf(in mo.Entity) *simulator.Datacenter {
	for in != nil {
		if center, ok := in.(*simulator.Datacenter); ok {
			return center
		}
		parent := in.Entity().Parent
		if parent == nil {
			break
		}
		in, _ = registry().Get(*parent).(mo.Entity)
	}
	return nil
}
