package main

import (
	"fmt"
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// diskTask makes a task of the manager; what goes wrong is its fault.
func (m *diskManager) diskTask(method string, do func() (types.AnyType, error)) types.ManagedObjectReference {
	return startTask(m.Self, method, "", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		value, err := do()
		if err == nil {
			return value, nil
		}
		switch e := err.(type) {
		case *fileFault:
			return nil, e.fault
		default:
			return nil, &types.GenericVmConfigFault{Reason: err.Error()}
		}
	})
}

// fileFault is a fault that names a file.
type fileFault struct{ fault types.BaseMethodFault }

func (f *fileFault) Error() string { return faultMessage(f.fault) }

// place is the file of a disk that has to be there, or must not be.
func place(name string, there bool) (string, error) {
	file, err := datastoreFile(name)
	if err != nil {
		return "", &fileFault{&types.InvalidDatastorePath{DatastorePath: name}}
	}
	switch {
	case there && !exists(file):
		return "", &fileFault{&types.FileNotFound{FileFault: types.FileFault{File: name}}}
	case !there && exists(file):
		return "", &fileFault{&types.FileAlreadyExists{FileFault: types.FileFault{File: name}}}
	}
	return file, nil
}

func (m *diskManager) CreateVirtualDiskTask(_ *simulator.Context, request *types.CreateVirtualDisk_Task) soap.HasFault {
	task := m.diskTask("CreateVirtualDisk_Task", func() (types.AnyType, error) {
		file, err := place(request.Name, false)
		if err != nil {
			return nil, err
		}
		spec, ok := request.Spec.(*types.FileBackedVirtualDiskSpec)
		if !ok || spec.CapacityKb <= 0 {
			return nil, &fileFault{&types.InvalidArgument{InvalidProperty: "spec.capacityKb"}}
		}
		return request.Name, createDisk(file, "", spec.CapacityKb<<10)
	})
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: task}}
}

// copyDisk copies a disk with all that its parents have, from whatever format, into a flat one.
func copyDisk(source, destination string, force bool) error {
	from, err := place(source, true)
	if err != nil {
		return err
	}
	to, err := place(destination, false)
	if err != nil {
		if to, err = datastoreFile(destination); err != nil || !force {
			return &fileFault{&types.FileAlreadyExists{FileFault: types.FileFault{File: destination}}}
		}
	}
	if err := image("convert", "-f", "vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat", from, to); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	ownDisks.Store(to, nil)
	return nil
}

func (m *diskManager) CopyVirtualDiskTask(_ *simulator.Context, request *types.CopyVirtualDisk_Task) soap.HasFault {
	task := m.diskTask("CopyVirtualDisk_Task", func() (types.AnyType, error) {
		return nil, copyDisk(request.SourceName, request.DestName, isTrue(request.Force))
	})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: task}}
}

func (m *diskManager) MoveVirtualDiskTask(_ *simulator.Context, request *types.MoveVirtualDisk_Task) soap.HasFault {
	task := m.diskTask("MoveVirtualDisk_Task", func() (types.AnyType, error) {
		if err := copyDisk(request.SourceName, request.DestName, isTrue(request.Force)); err != nil {
			return nil, err
		}
		file, err := datastoreFile(request.SourceName)
		if err != nil {
			return nil, err
		}
		for _, old := range []string{file, flatFile(file)} {
			if err := os.Remove(old); err != nil && !os.IsNotExist(err) {
				return nil, err
			}
		}
		ownDisks.Delete(file)
		return nil, nil
	})
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: task}}
}
