package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	govmomi "github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// pool answers ImportVApp instead of a resource pool.
type pool struct {
	of *simulator.ResourcePool
}

func poolOf(of *simulator.ResourcePool) *pool {
	p := &pool{of}
	if known, ok := registry().Get(p.Reference()).(*pool); ok {
		return known
	}
	registry().Put(p)
	return p
}

func (p *pool) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: poolKind, Value: p.of.Self.Value}
}

// Lock and Unlock: the simulator would hold a lock of it while a call runs.

func (p *pool) Lock()   {}
func (p *pool) Unlock() {}

// lease is an import that is not complete: whose disks' bytes may come, by the names in their URLs.
type lease struct {
	machine *machine
	files   map[string]string
}

// leases are by the value of their reference. What comes for one needs no session, as on vSphere.
var leases sync.Map

// ImportVApp makes a machine whose disks are then uploaded. The simulator throws the uploads away.
func (p *pool) ImportVApp(ctx *simulator.Context, request *types.ImportVApp) soap.HasFault {
	request.This = p.of.Self
	spec, ok := request.Spec.(*types.VirtualMachineImportSpec)
	if ok {
		fault := checkDevices(p.of, &spec.ConfigSpec, nil)
		if fault == nil {
			fault = prepareDisks(&spec.ConfigSpec)
		}
		if fault != nil {
			return &methods.ImportVAppBody{Fault_: simulator.Fault(faultMessage(fault), fault)}
		}
	}
	answer := exclusive(ctx, p.of, func(own *simulator.Context) soap.HasFault { return p.of.ImportVApp(own, request) })
	if answer.Fault() != nil || !ok {
		return answer
	}
	reference := answer.(*methods.ImportVAppBody).Res.Returnval
	made, ok := ctx.Session.Get(reference).(*simulator.HttpNfcLease)
	if !ok {
		return answer
	}
	vm, ok := registry().Get(made.Info.Entity).(*simulator.VirtualMachine)
	if !ok {
		return answer
	}
	l := &lease{machine: machineOf(vm), files: make(map[string]string)}
	if fault := fillDisks(&spec.ConfigSpec); fault != nil {
		l.destroy(ctx)
		return &methods.ImportVAppBody{Fault_: simulator.Fault(faultMessage(fault), fault)}
	}
	registry().WithLock(vm, func() {
		for _, device := range vm.Config.Hardware.Device {
			if _, disk := device.(*types.VirtualDisk); !disk {
				continue
			}
			if file, err := fileOf(device.GetVirtualDevice().Backing); err == nil {
				l.files[path.Base(file)] = file
			}
		}
	})
	l.machine.bumpVersion()
	leases.Store(reference.Value, l)
	return answer
}

// destroy removes the machine, as a server does when an import is given up.
func (l *lease) destroy(ctx *simulator.Context) {
	l.machine.operation.Lock()
	defer l.machine.operation.Unlock()
	if _, fault := delegate(ctx, l.machine.vm, func(own *simulator.Context) soap.HasFault {
		return l.machine.vm.DestroyTask(own, &types.Destroy_Task{This: l.machine.vm.Self})
	}); fault != nil {
		log.Printf("the machine of an import that was given up stays: %T", fault)
		return
	}
	l.machine.forget()
}

// leaseEnded is told of a lease that was completed or given up.
func leaseEnded(value string, aborted bool) {
	if l, ok := leases.LoadAndDelete(value); ok && aborted {
		l.(*lease).destroy(internal())
	}
}

// serveUpload takes a disk's bytes, `streamOptimized`, and makes a disk of the host's kind of them. It
// tells whether the request was one for it.
func serveUpload(w http.ResponseWriter, r *http.Request) bool {
	parts := strings.Split(r.URL.Path, "/")
	if !host.enabled || len(parts) != 4 || r.Method != http.MethodPut && r.Method != http.MethodPost {
		return false
	}
	found, ok := leases.Load(parts[2])
	if !ok {
		return false
	}
	file, ok := found.(*lease).files[parts[3]]
	if !ok {
		http.NotFound(w, r)
		return true
	}
	if err := receive(r.Body, file); err != nil {
		log.Printf("upload of %s: %v", file, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return true
	}
	w.WriteHeader(http.StatusCreated)
	return true
}

// receive makes a disk of a stream.
func receive(stream io.Reader, file string) error {
	upload, err := os.CreateTemp(host.scratch, "upload.*.vmdk")
	if err != nil {
		return err
	}
	defer os.Remove(upload.Name())
	defer upload.Close()
	if _, err := io.Copy(upload, stream); err != nil {
		return err
	}
	return flatten(upload.Name(), file)
}

// flatten copies a disk with all that its parents have, from whatever format, into a flat one.
func flatten(from, to string) error {
	if err := image("convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat", from, to); err != nil {
		return err
	}
	ownDisks.Store(to, nil)
	return nil
}

// inUse tells whether a machine that is on has a disk.
func inUse(file string) bool {
	for _, entity := range registry().All("VirtualMachine") {
		vm, ok := entity.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		used := false
		registry().WithLock(vm, func() {
			if vm.Config == nil || vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
				return
			}
			disks := govmomi.VirtualDeviceList(vm.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))
			for _, disk := range disks {
				other, err := fileOf(disk.GetVirtualDevice().Backing)
				used = used || err == nil && other == file
			}
		})
		if used {
			return true
		}
	}
	return false
}

// renameDisk gives a disk's files other names; a descriptor names its extent.
func renameDisk(from, to string) error {
	for _, pair := range [][2]string{{flatFile(from), flatFile(to)}, {from, to}} {
		if err := os.Rename(pair[0], pair[1]); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if _, own := ownDisks.LoadAndDelete(from); own {
		ownDisks.Store(to, nil)
	}
	return nameExtent(to, filepath.Base(flatFile(from)), filepath.Base(flatFile(to)))
}

// nameExtent corrects the name of the extent in a descriptor, if the file is one.
func nameExtent(file, old, name string) error {
	head, err := os.ReadFile(file)
	if err != nil || old == name || !strings.HasPrefix(string(head), "# Disk DescriptorFile") {
		return err
	}
	corrected := strings.ReplaceAll(string(head), fmt.Sprintf("%q", old), fmt.Sprintf("%q", name))
	return os.WriteFile(file, []byte(corrected), 0o600)
}
