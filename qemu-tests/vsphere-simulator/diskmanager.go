package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// diskManager makes, copies and moves disks that can be read, where there are guests, and deletes disks
// of one file as well as of two.
type diskManager struct {
	simulator.VirtualDiskManager
}

// installDiskManager makes it the registry's.
func installDiskManager() {
	m := &diskManager{}
	m.Self = registry().VirtualDiskManager().Reference()
	registry().Put(m)
}

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

// places are a disk that is there and one that is not, unless it may be.
func places(source, destination string, force *bool) (string, string, error) {
	from, err := place(source, true)
	if err != nil {
		return "", "", err
	}
	to, err := place(destination, false)
	if err != nil && isTrue(force) {
		to, err = datastoreFile(destination)
	}
	return from, to, err
}

func (m *diskManager) CreateVirtualDiskTask(ctx *simulator.Context, request *types.CreateVirtualDisk_Task) soap.HasFault {
	if !host.enabled {
		return m.VirtualDiskManager.CreateVirtualDiskTask(ctx, request)
	}
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

func (m *diskManager) CopyVirtualDiskTask(ctx *simulator.Context, request *types.CopyVirtualDisk_Task) soap.HasFault {
	if !host.enabled {
		return m.VirtualDiskManager.CopyVirtualDiskTask(ctx, request)
	}
	task := m.diskTask("CopyVirtualDisk_Task", func() (types.AnyType, error) {
		from, to, err := places(request.SourceName, request.DestName, request.Force)
		if err != nil {
			return nil, err
		}
		return nil, flatten(from, to)
	})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: task}}
}

func (m *diskManager) MoveVirtualDiskTask(_ *simulator.Context, request *types.MoveVirtualDisk_Task) soap.HasFault {
	task := m.diskTask("MoveVirtualDisk_Task", func() (types.AnyType, error) {
		from, to, err := places(request.SourceName, request.DestName, request.Force)
		if err != nil {
			return nil, err
		}
		if inUse(from) {
			return nil, &fileFault{&types.FileLocked{FileFault: types.FileFault{File: request.SourceName}}}
		}
		return nil, renameDisk(from, to)
	})
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: task}}
}

func (m *diskManager) DeleteVirtualDiskTask(_ *simulator.Context, request *types.DeleteVirtualDisk_Task) soap.HasFault {
	remove := func() (types.AnyType, error) {
		file, err := place(request.Name, true)
		if err != nil {
			return nil, err
		}
		if inUse(file) {
			return nil, &fileFault{&types.FileLocked{FileFault: types.FileFault{File: request.Name}}}
		}
		return nil, removeDisk(file)
	}
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{
		Returnval: m.diskTask("DeleteVirtualDisk_Task", remove),
	}}
}

// removeDisk removes a disk's files.
func removeDisk(file string) error {
	for _, old := range []string{flatFile(file), file} {
		if err := os.Remove(old); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	ownDisks.Delete(file)
	return nil
}
