package main

import (
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// hardware is what QEMU has to know of a virtual machine: a copy, so that nobody needs its lock.
type hardware struct {
	name, uuid, instanceUUID, locationID string
	processors, memory                   int
	efi                                  bool
	buses                                []int
	disks                                []diskDevice
	// The file of the ISO image in the drive, "" for none.
	cdrom   string
	cards   []cardDevice
	serials []serialDevice
	// The values of guestinfo.* by the rest of their names.
	guestinfo map[string]string
}

type diskDevice struct {
	key, bus, unit int
	file           string
	serial         string
	// The files of what it is a child of.
	parents []string
	// What is written is forgotten at the end.
	volatile bool
	// A snapshot does not hold it still.
	independent bool
}

type cardDevice struct {
	key       int
	mac       string
	connected bool
}

type serialDevice struct {
	key int
	// One of these, or neither: a file, or where it is dialled to.
	file   string
	target target
}

// datastoreFile is the file of a datastore path: `[LocalDS_0] a/b.vmdk`.
func datastoreFile(name string) (string, error) {
	var p object.DatastorePath
	if !p.FromString(name) {
		return "", fmt.Errorf("%q is no datastore path", name)
	}
	if p.Datastore != datastoreName {
		return "", fmt.Errorf("%q: there is no datastore %q", name, p.Datastore)
	}
	return path.Join(host.datastore, path.Clean("/"+p.Path)), nil
}

// fileOf is the file of a device's backing.
func fileOf(backing types.BaseVirtualDeviceBackingInfo) (string, error) {
	file, ok := backing.(types.BaseVirtualDeviceFileBackingInfo)
	if !ok {
		return "", fmt.Errorf("%T is no file", backing)
	}
	return datastoreFile(file.GetVirtualDeviceFileBackingInfo().FileName)
}

// readHardware copies a virtual machine's configuration; it takes its lock.
func readHardware(vm *simulator.VirtualMachine) (hardware, error) {
	h := hardware{guestinfo: make(map[string]string)}
	var err error
	registry().WithLock(vm, func() { err = h.read(vm) })
	return h, err
}

func (h *hardware) read(vm *simulator.VirtualMachine) error {
	config := vm.Config
	h.name, h.uuid = vm.Name, config.Uuid
	h.instanceUUID, h.locationID = config.InstanceUuid, config.LocationId
	h.processors, h.memory = int(config.Hardware.NumCPU), int(config.Hardware.MemoryMB)
	h.efi = config.Firmware == string(types.GuestOsDescriptorFirmwareTypeEfi)
	for _, option := range config.ExtraConfig {
		value := option.GetOptionValue()
		if name := strings.TrimPrefix(value.Key, "guestinfo."); name != value.Key {
			h.guestinfo[name] = fmt.Sprint(value.Value)
		}
	}
	devices := object.VirtualDeviceList(config.Hardware.Device)
	for _, device := range devices {
		if err := h.device(devices, device); err != nil {
			return fmt.Errorf("device %d: %w", device.GetVirtualDevice().Key, err)
		}
	}
	sort.Slice(h.serials, func(i, j int) bool { return h.serials[i].key < h.serials[j].key })
	return nil
}

func (h *hardware) device(devices object.VirtualDeviceList, device types.BaseVirtualDevice) error {
	base := device.GetVirtualDevice()
	key := int(base.Key)
	switch d := device.(type) {
	case types.BaseVirtualSCSIController:
		h.buses = append(h.buses, int(d.GetVirtualSCSIController().BusNumber))
	case *types.VirtualDisk:
		controller, ok := devices.FindByKey(base.ControllerKey).(types.BaseVirtualSCSIController)
		if !ok || base.UnitNumber == nil {
			return fmt.Errorf("only disks on a SCSI controller are supported")
		}
		file, err := fileOf(base.Backing)
		if err != nil {
			return err
		}
		disk := diskDevice{
			key: key, bus: int(controller.GetVirtualSCSIController().BusNumber), unit: int(*base.UnitNumber), file: file,
		}
		if flat, ok := base.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			disk.serial = strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(flat.Uuid))
			for parent := flat.Parent; parent != nil; parent = parent.Parent {
				file, err := datastoreFile(parent.FileName)
				if err != nil {
					return err
				}
				disk.parents = append(disk.parents, file)
			}
			disk.independent = strings.HasPrefix(flat.DiskMode, "independent")
			disk.volatile = strings.HasSuffix(flat.DiskMode, "nonpersistent")
		}
		h.disks = append(h.disks, disk)
	case *types.VirtualCdrom:
		if _, iso := base.Backing.(*types.VirtualCdromIsoBackingInfo); iso && h.cdrom == "" && atStart(base) {
			file, err := fileOf(base.Backing)
			if err != nil {
				return err
			}
			h.cdrom = file
		}
	case types.BaseVirtualEthernetCard:
		h.cards = append(h.cards, cardDevice{
			key: key, mac: d.GetVirtualEthernetCard().MacAddress,
			connected: base.Connectable == nil || base.Connectable.Connected || base.Connectable.StartConnected,
		})
	case *types.VirtualSerialPort:
		port := serialDevice{key: key}
		switch backing := base.Backing.(type) {
		case *types.VirtualSerialPortFileBackingInfo:
			file, err := datastoreFile(backing.FileName)
			if err != nil {
				return err
			}
			port.file = file
		case *types.VirtualSerialPortURIBackingInfo:
			if atStart(base) {
				port.target = target{
					service: backing.ServiceURI, direction: backing.Direction, proxy: backing.ProxyURI,
				}
			}
		}
		h.serials = append(h.serials, port)
	}
	return nil
}

// atStart tells whether a device is connected when the machine starts.
func atStart(base *types.VirtualDevice) bool {
	return base.Connectable == nil || base.Connectable.StartConnected || base.Connectable.Connected
}
