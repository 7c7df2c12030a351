package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"
	"time"

	govmomi "github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// InstantCloneTask makes a running copy of a running machine, which goes on.
//
// With guests the copy is one: the source's memory, the state of its devices and its disks are copied
// while it stands still, and another QEMU goes on from there. As on vSphere the copy's serial ports
// are dialled anew to where the source's are, and its guest has the source's MAC (a PCI serial number, too, is
// made of it) and addresses. What it
// can read of guestinfo are the values of the clone under the names that the source had when it booted,
// and they have to be as long, but for the list of disks: a running kernel keeps QEMU's list of them.
//
// vCenter only; on the source's host; of the devices only vNICs and serial ports with a file can differ.
func (m *machine) InstantCloneTask(ctx *simulator.Context, request *types.InstantClone_Task) soap.HasFault {
	if registry().IsESX() {
		return &methods.InstantClone_TaskBody{Fault_: simulator.Fault("", &types.NotSupported{})}
	}
	task := m.start("InstantClone_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		clone, fault := m.instantClone(ctx, &request.Spec)
		if fault != nil {
			return nil, fault
		}
		return clone.vm.Self, nil
	})
	return &methods.InstantClone_TaskBody{Res: &types.InstantClone_TaskResponse{Returnval: task}}
}

func (m *machine) instantClone(ctx *simulator.Context, spec *types.VirtualMachineInstantCloneSpec) (*machine, types.BaseMethodFault) {
	if fault := m.mustRun(); fault != nil {
		return nil, fault
	}
	request, parent, fault := m.cloneRequest(spec)
	if fault != nil {
		return nil, fault
	}
	reference, fault := createMachine(ctx, parent, request)
	if fault != nil {
		return nil, fault
	}
	clone := machineOf(registry().Get(reference).(*simulator.VirtualMachine))
	clone.operation.Lock()
	defer clone.operation.Unlock()
	if err := m.cloneGuest(clone); err != nil {
		_, _ = delegate(ctx, clone.vm, func(own *simulator.Context) soap.HasFault {
			return clone.vm.DestroyTask(own, &types.Destroy_Task{This: clone.vm.Self})
		})
		clone.forget()
		return nil, &types.GenericVmConfigFault{Reason: err.Error()}
	}
	if _, fault := delegate(ctx, clone.vm, func(own *simulator.Context) soap.HasFault {
		return clone.vm.PowerOnVMTask(own, &types.PowerOnVM_Task{This: clone.vm.Self})
	}); fault != nil {
		clone.stopGuest()
		return nil, fault
	}
	return clone, nil
}

// cloneRequest is the CreateVM_Task that makes the clone, and the folder it is made in.
func (m *machine) cloneRequest(spec *types.VirtualMachineInstantCloneSpec) (*types.CreateVM_Task, *simulator.Folder, types.BaseMethodFault) {
	invalid := func(property string) types.BaseMethodFault {
		return &types.InvalidArgument{InvalidProperty: "spec." + property}
	}
	request := &types.CreateVM_Task{}
	config := &request.Config
	var parent types.ManagedObjectReference
	var devices []types.BaseVirtualDevice
	var err error
	registry().WithLock(m.vm, func() {
		parent = *m.vm.Parent
		if m.vm.ResourcePool != nil {
			request.Pool = *m.vm.ResourcePool
		}
		on := *m.vm.Runtime.Host
		request.Host = &on
		config.NumCPUs, config.MemoryMB = m.vm.Config.Hardware.NumCPU, int64(m.vm.Config.Hardware.MemoryMB)
		config.NumCoresPerSocket = m.vm.Config.Hardware.NumCoresPerSocket
		config.GuestId, config.Firmware, config.Version = m.vm.Config.GuestId, m.vm.Config.Firmware, m.vm.Config.Version
		config.CpuAllocation, config.MemoryAllocation = m.vm.Config.CpuAllocation, m.vm.Config.MemoryAllocation
		config.CpuHotAddEnabled, config.MemoryHotAddEnabled = m.vm.Config.CpuHotAddEnabled, m.vm.Config.MemoryHotAddEnabled
		config.ExtraConfig = mergeExtraConfig(m.vm.Config.ExtraConfig, spec.Config)
		devices, err = copyDevices(m.vm.Config.Hardware.Device)
	})
	if err != nil {
		return nil, nil, &types.SystemError{Reason: err.Error()}
	}
	if spec.Name == "" {
		return nil, nil, invalid("name")
	}
	config.Name, config.Uuid = spec.Name, spec.BiosUuid
	config.Files = &types.VirtualMachineFileInfo{VmPathName: "[" + datastoreName + "]"}
	if on := spec.Location.Host; on != nil && *on != *request.Host {
		return nil, nil, invalid("location.host")
	}
	if spec.Location.Pool != nil {
		request.Pool = *spec.Location.Pool
	}
	if spec.Location.Folder != nil {
		parent = *spec.Location.Folder
	}
	folder, ok := registry().Get(parent).(*simulator.Folder)
	if !ok {
		return nil, nil, invalid("location.folder")
	}
	for i, change := range spec.Location.DeviceChange {
		if !applyToClone(devices, change.GetVirtualDeviceConfigSpec()) {
			return nil, nil, invalid(fmt.Sprintf("location.deviceChange[%d]", i))
		}
	}
	for _, device := range devices {
		change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: device}
		if disk, ok := device.(*types.VirtualDisk); ok {
			change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
			backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			if !ok {
				return nil, nil, &types.NotSupported{}
			}
			var source govmomi.DatastorePath
			source.FromString(backing.FileName)
			backing.FileName = fmt.Sprintf("[%s] %s/%s", datastoreName, spec.Name, path.Base(source.Path))
			backing.Datastore = nil
		}
		config.DeviceChange = append(config.DeviceChange, change)
	}
	return request, folder, nil
}

// copyDevices copies what a clone has like its source; the rest every machine has.
func copyDevices(devices []types.BaseVirtualDevice) ([]types.BaseVirtualDevice, error) {
	var kept []types.BaseVirtualDevice
	for _, device := range devices {
		switch device.(type) {
		case *types.VirtualDisk, types.BaseVirtualSCSIController, *types.VirtualCdrom, types.BaseVirtualEthernetCard,
			*types.VirtualSerialPort:
			kept = append(kept, device)
		}
	}
	data, err := xml.Marshal(types.ArrayOfVirtualDevice{VirtualDevice: kept})
	if err != nil {
		return nil, err
	}
	decoder := xml.NewDecoder(bytes.NewReader(data))
	decoder.TypeFunc = types.TypeFunc()
	var copied types.ArrayOfVirtualDevice
	err = decoder.Decode(&copied)
	return copied.VirtualDevice, err
}

// applyToClone makes a clone's device what a specification says, if it may.
func applyToClone(devices []types.BaseVirtualDevice, change *types.VirtualDeviceConfigSpec) bool {
	if change.Operation != types.VirtualDeviceConfigSpecOperationEdit || change.Device == nil {
		return false
	}
	wanted := change.Device.GetVirtualDevice()
	for _, device := range devices {
		base := device.GetVirtualDevice()
		if base.Key != wanted.Key {
			continue
		}
		switch device.(type) {
		case types.BaseVirtualEthernetCard:
		case *types.VirtualSerialPort:
			if _, file := wanted.Backing.(*types.VirtualSerialPortFileBackingInfo); !file {
				return false
			}
		default:
			return false
		}
		if wanted.Backing != nil {
			base.Backing = wanted.Backing
		}
		if wanted.Connectable != nil {
			base.Connectable = wanted.Connectable
		}
		if card, ok := change.Device.(types.BaseVirtualEthernetCard); ok && card.GetVirtualEthernetCard().MacAddress != "" {
			device.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard().MacAddress = card.GetVirtualEthernetCard().MacAddress
		}
		return true
	}
	return false
}

// cloneGuest lets the clone's guest go on from where the source's is; the operations of both are held.
func (m *machine) cloneGuest(clone *machine) error {
	if m.guest == nil {
		return nil
	}
	from, err := readHardware(m.vm)
	if err != nil {
		return err
	}
	to, err := readHardware(clone.vm)
	if err != nil {
		return err
	}
	if len(from.disks) != len(to.disks) {
		return fmt.Errorf("the clone has %d disks, not %d", len(to.disks), len(from.disks))
	}
	if len(from.cards) != len(to.cards) {
		return fmt.Errorf("the clone has %d vNICs, not %d", len(to.cards), len(from.cards))
	}
	for i, card := range from.cards {
		to.cards[i].mac = m.guest.macs[card.key]
	}
	to.guestinfo = m.guest.sameNames(to.guestinfo)
	state := filepath.Join(m.guest.directory, "state")
	defer os.Remove(state)
	memory, err := m.guest.freeze(state, func() error {
		for i := range from.disks {
			if err := copyFiles(from.disks[i].file, to.disks[i].file); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := clone.boot(to, m.guest.slots, memory); err != nil {
		return err
	}
	if err := clone.guest.thaw(state); err != nil {
		complaint := clone.guest.complaint()
		clone.stopGuest()
		return fmt.Errorf("%w: %s", err, complaint)
	}
	return nil
}

// copyFiles copies a disk's two files. A child says by an absolute path where its parent is; a descriptor
// names its extent, which has another name now.
func copyFiles(from, to string) error {
	for _, pair := range [][2]string{{flatFile(from), flatFile(to)}, {from, to}} {
		if err := copyFile(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nameExtent(to, filepath.Base(flatFile(from)), filepath.Base(flatFile(to)))
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	defer target.Close()
	_, err = io.Copy(target, source)
	return err
}

// sameNames are the values under the names that the guest had at its start.
func (g *guest) sameNames(values map[string]string) map[string]string {
	kept := make(map[string]string)
	for name, old := range g.guestinfo {
		value, ok := values[name]
		fits := len(value) == len(old) || name == "tether.disks" && len(value) <= disksLength
		if !ok || !fits {
			log.Printf("guestinfo.%s: a clone's value has to be as long as its source's: the source's is kept", name)
			value = old
		}
		kept[name] = value
	}
	return kept
}

// birthLimit is how long QEMU may take to read the state of another guest's devices.
const birthLimit = time.Minute

// freeze stops the guest, writes the state of its devices to a file, copies its memory, does something
// more while it stands still, and lets it go on. A migration would refuse: a VMDK is open for writing.
func (g *guest) freeze(state string, meanwhile func() error) (memory *os.File, err error) {
	if _, err := g.monitor.execute("stop", nil); err != nil {
		return nil, err
	}
	defer func() {
		if _, failed := g.monitor.execute("cont", nil); failed != nil {
			log.Printf("a guest does not go on after it was copied: %v", failed)
		}
		if err != nil && memory != nil {
			memory.Close()
			memory = nil
		}
	}()
	if _, err := g.monitor.execute("xen-save-devices-state", dict{"filename": state, "live": false}); err != nil {
		return nil, err
	}
	if memory, err = copyMemory(g.memory); err != nil {
		return memory, err
	}
	return memory, meanwhile()
}

// thaw reads what another guest's devices were, and goes on from there.
func (g *guest) thaw(state string) error {
	if _, err := g.monitor.execute("migrate-set-capabilities", dict{"capabilities": []dict{
		{"capability": "events", "state": true}, {"capability": "x-ignore-shared", "state": true},
	}}); err != nil {
		return err
	}
	done := g.monitor.expect(func(m message) bool {
		return m.Event == "MIGRATION" && (m.Data.Status == "completed" || m.Data.Status == "failed")
	})
	if _, err := g.monitor.execute("migrate-incoming", dict{"uri": "exec:cat '" + state + "'"}); err != nil {
		return err
	}
	if err := done(birthLimit); err != nil {
		return err
	}
	_, err := g.monitor.execute("cont", nil)
	return err
}
