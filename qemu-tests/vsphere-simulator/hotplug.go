package main

import (
	"fmt"

	"github.com/vmware/govmomi/vim25/types"
)

// unplug takes out of a running guest what a specification removes, before its configuration changes.
func (m *machine) unplug(spec *types.VirtualMachineConfigSpec, before hardware) types.BaseMethodFault {
	if m.guest == nil {
		return nil
	}
	for _, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		if c.Operation != types.VirtualDeviceConfigSpecOperationRemove {
			continue
		}
		key := int(c.Device.GetVirtualDevice().Key)
		for _, disk := range before.disks {
			if disk.key == key {
				if err := m.guest.removeDisk(disk); err != nil {
					return hotPlugFault(key, err)
				}
			}
		}
		for _, card := range before.cards {
			if card.key == key {
				if err := m.guest.removeCard(card); err != nil {
					return hotPlugFault(key, err)
				}
			}
		}
		if port := m.guest.ports[key]; port != nil {
			port.dial(target{})
		}
	}
	return nil
}

// plug brings a running guest to what its configuration has become.
func (m *machine) plug(before, after hardware) types.BaseMethodFault {
	if m.guest == nil {
		return nil
	}
	had := make(map[int]bool)
	for _, disk := range before.disks {
		had[disk.key] = true
	}
	for _, disk := range after.disks {
		if !had[disk.key] {
			if err := m.guest.addDisk(disk); err != nil {
				return hotPlugFault(disk.key, err)
			}
		}
	}
	cards := make(map[int]cardDevice)
	for _, card := range before.cards {
		cards[card.key] = card
	}
	for _, card := range after.cards {
		old, there := cards[card.key]
		var err error
		switch {
		case !there:
			err = m.guest.addCard(card)
		case old.connected != card.connected:
			err = m.guest.link(card, card.connected)
		}
		if err != nil {
			return hotPlugFault(card.key, err)
		}
	}
	targets := make(map[int]target)
	for _, port := range before.serials {
		targets[port.key] = port.target
	}
	for _, port := range after.serials {
		running := m.guest.ports[port.key]
		if running != nil && targets[port.key] != port.target {
			running.dial(port.target)
		}
	}
	return nil
}

func hotPlugFault(key int, err error) types.BaseMethodFault {
	return &types.GenericVmConfigFault{Reason: fmt.Sprintf("device %d: %v", key, err)}
}
