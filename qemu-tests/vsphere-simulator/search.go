package main

import (
	"encoding/xml"
	"fmt"

	"github.com/vmware/govmomi/simulator"
)

// findByUUID is the answer to FindByUuid: the simulator's own looks at all objects, among them those that
// answer instead of others, and takes them for what it does not know or for the machine itself.
func findByUUID(body []byte) string {
	var asked struct {
		UUID     string `xml:"Body>FindByUuid>uuid"`
		Machines bool   `xml:"Body>FindByUuid>vmSearch"`
		Instance bool   `xml:"Body>FindByUuid>instanceUuid"`
	}
	if err := xml.Unmarshal(body, &asked); err != nil {
		return ""
	}
	kind := "HostSystem"
	if asked.Machines {
		kind = "VirtualMachine"
	}
	for _, entity := range registry().All(kind) {
		var uuid string
		registry().WithLock(entity, func() {
			switch found := entity.(type) {
			case *simulator.VirtualMachine:
				if uuid = found.Config.Uuid; asked.Instance {
					uuid = found.Config.InstanceUuid
				}
			case *simulator.HostSystem:
				if found.Summary.Hardware != nil {
					uuid = found.Summary.Hardware.Uuid
				}
			}
		})
		if uuid == asked.UUID {
			return fmt.Sprintf(`<returnval type="%s">%s</returnval>`, kind, entity.Reference().Value)
		}
	}
	return ""
}
