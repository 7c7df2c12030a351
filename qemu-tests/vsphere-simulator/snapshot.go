package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// CreateSnapshotTask holds still what the machine's disks are: each goes on in a child, as on vSphere.
// Independent disks go on as they are. Memory is not part of it.
func (m *machine) CreateSnapshotTask(ctx *simulator.Context, request *types.CreateSnapshot_Task) soap.HasFault {
	request.This = m.vm.Self
	task := m.start("CreateSnapshot_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		before, err := readHardware(m.vm)
		if err != nil {
			return nil, &types.GenericVmConfigFault{Reason: err.Error()}
		}
		value, fault := delegate(ctx, m.vm, func(own *simulator.Context) soap.HasFault {
			return m.vm.CreateSnapshotTask(request)
		})
		if fault != nil || !host.enabled {
			return value, fault
		}
		files := make(map[int]string)
		for _, disk := range before.disks {
			if disk.independent {
				continue
			}
			file := nextDelta(disk.file)
			if err := m.branch(disk, file); err != nil {
				return nil, &types.GenericVmConfigFault{Reason: err.Error()}
			}
			files[disk.key] = file
		}
		m.changeDisks(func(disk *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) {
			if file, ok := files[int(disk.Key)]; ok {
				parent := *backing
				backing.Parent, backing.FileName = &parent, datastorePath(file)
			}
		})
		return value, nil
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: task}}
}

// delta is the end of the names of children that snapshots made.
var delta = regexp.MustCompile(`-(\d{6})\.vmdk$`)

// nextDelta is a name for a disk's child that is not taken: `a.vmdk` goes on in `a-000001.vmdk`.
func nextDelta(file string) string {
	stem := delta.ReplaceAllString(file, ".vmdk")
	stem = strings.TrimSuffix(stem, ".vmdk")
	for n := 1; ; n++ {
		if name := fmt.Sprintf("%s-%06d.vmdk", stem, n); !exists(name) {
			return name
		}
	}
}

// datastorePath is the datastore path of a file.
func datastorePath(file string) string {
	relative, _ := filepath.Rel(host.datastore, file)
	return fmt.Sprintf("[%s] %s", datastoreName, relative)
}

// branch lets a disk go on in a child.
func (m *machine) branch(disk diskDevice, child string) error {
	if m.guest == nil {
		return createDisk(child, disk.file, 0)
	}
	if err := createBranch(child, disk.file); err != nil {
		return err
	}
	return m.guest.branchDisk(disk, child)
}

// changeDisks changes disks of the configuration, in copies: a snapshot has the old ones.
func (m *machine) changeDisks(change func(*types.VirtualDisk, *types.VirtualDiskFlatVer2BackingInfo)) {
	registry().WithLock(m.vm, func() {
		devices := append([]types.BaseVirtualDevice(nil), m.vm.Config.Hardware.Device...)
		for i, device := range devices {
			disk, ok := device.(*types.VirtualDisk)
			if !ok {
				continue
			}
			backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			if !ok {
				continue
			}
			newDisk, newBacking := *disk, *backing
			newDisk.Backing = &newBacking
			change(&newDisk, &newBacking)
			devices[i] = &newDisk
		}
		registry().Update(m.vm, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
	})
	m.bumpVersion()
}

// snapshot answers RemoveSnapshot_Task instead of a snapshot.
type snapshot struct {
	of *simulator.VirtualMachineSnapshot
}

func snapshotOf(of *simulator.VirtualMachineSnapshot) *snapshot {
	s := &snapshot{of}
	if known, ok := registry().Get(s.Reference()).(*snapshot); ok {
		return known
	}
	registry().Put(s)
	return s
}

func (s *snapshot) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: snapshotKind, Value: s.of.Self.Value}
}

// Lock and Unlock: the simulator would hold a lock of it while a call runs.

func (s *snapshot) Lock()   {}
func (s *snapshot) Unlock() {}

// RemoveSnapshotTask puts what the disks' children have into what the snapshot held still, where the
// machine's disks are children of that; otherwise the chain stays as it is.
func (s *snapshot) RemoveSnapshotTask(ctx *simulator.Context, request *types.RemoveSnapshot_Task) soap.HasFault {
	request.This = s.of.Self
	vm, ok := registry().Get(s.of.Vm).(*simulator.VirtualMachine)
	if !ok {
		return &methods.RemoveSnapshot_TaskBody{Fault_: simulator.Fault("", &types.ManagedObjectNotFound{Obj: s.of.Vm})}
	}
	m := machineOf(vm)
	held := make(map[string]bool)
	for _, device := range s.of.Config.Hardware.Device {
		if file, err := fileOf(device.GetVirtualDevice().Backing); err == nil {
			held[file] = true
		}
	}
	task := m.start("RemoveSnapshot_Task", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		value, fault := delegate(ctx, s.of, func(own *simulator.Context) soap.HasFault {
			return s.of.RemoveSnapshotTask(own, request)
		})
		if fault != nil || !host.enabled {
			return value, fault
		}
		registry().Remove(s.Reference())
		if err := m.consolidate(held); err != nil {
			return nil, &types.GenericVmConfigFault{Reason: err.Error()}
		}
		return value, nil
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: task}}
}

// consolidate merges the children of these files into them; its operation is held.
func (m *machine) consolidate(held map[string]bool) error {
	now, err := readHardware(m.vm)
	if err != nil {
		return err
	}
	merged := make(map[int]bool)
	for _, disk := range now.disks {
		if disk.independent || len(disk.parents) == 0 || !held[disk.parents[0]] || !delta.MatchString(disk.file) {
			continue
		}
		if m.guest != nil {
			err = m.guest.commitDisk(disk)
		} else {
			err = image("commit", "-q", "-f", "vmdk", disk.file)
		}
		if err == nil {
			err = removeDisk(disk.file)
		}
		if err != nil {
			return err
		}
		merged[disk.key] = true
	}
	m.changeDisks(func(disk *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) {
		if merged[int(disk.Key)] {
			parent := *backing.Parent
			backing.FileName, backing.Parent = parent.FileName, parent.Parent
		}
	})
	return nil
}

// branchDisk lets a running guest's disk go on in a child that is there.
func (g *guest) branchDisk(disk diskDevice, child string) error {
	g.branches++
	file, top := fmt.Sprintf("branch-file-%d", g.branches), fmt.Sprintf("branch-%d", g.branches)
	for _, node := range []dict{
		{"driver": "file", "node-name": file, "filename": child, "discard": "unmap"},
		{"driver": "vmdk", "node-name": top, "file": file, "backing": nil, "discard": "unmap"},
	} {
		if _, err := g.monitor.execute("blockdev-add", node); err != nil {
			return err
		}
	}
	nodes := g.nodes[disk.key]
	if _, err := g.monitor.execute("blockdev-snapshot", dict{"node": nodes[0], "overlay": top}); err != nil {
		return err
	}
	g.nodes[disk.key] = append([]string{top, file}, nodes...)
	return nil
}

// commitLimit is how long QEMU may take to merge a child into its parent.
const commitLimit = 5 * time.Minute

// commitDisk merges the newest child of a running guest's disk into what it is a child of, and lets the
// guest go on there.
func (g *guest) commitDisk(disk diskDevice) error {
	nodes := g.nodes[disk.key]
	if len(nodes) < 4 {
		return fmt.Errorf("disk %d of the running guest has no child", disk.key)
	}
	job := fmt.Sprintf("commit-%d", disk.key)
	ready := g.monitor.expect(func(m message) bool {
		return m.Data.Device == job && (m.Event == "BLOCK_JOB_READY" || m.Event == "BLOCK_JOB_COMPLETED")
	})
	if _, err := g.monitor.execute("block-commit", dict{
		"job-id": job, "device": nodes[0], "base-node": nodes[2],
	}); err != nil {
		return err
	}
	if err := ready(commitLimit); err != nil {
		return err
	}
	done := g.monitor.expect(func(m message) bool { return m.Data.Device == job && m.Event == "BLOCK_JOB_COMPLETED" })
	if _, err := g.monitor.execute("block-job-complete", dict{"device": job}); err != nil {
		return err
	}
	if err := done(commitLimit); err != nil {
		return err
	}
	for _, node := range nodes[:2] {
		if _, err := g.monitor.execute("blockdev-del", dict{"node-name": node}); err != nil {
			return err
		}
	}
	g.nodes[disk.key] = nodes[2:]
	return nil
}
