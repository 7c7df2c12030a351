package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/types"
)

// ownDisks are the disks made here, by file: QEMU's formats of children are not ESXi's, so what ESXi would
// refuse is looked for in the others only.
var ownDisks sync.Map

// parents has what a server reads in the descriptor of a disk that is there when it is attached: by file, the
// backing of what it is a child of.
var parents sync.Map

// image runs qemu-img.
func image(arguments ...string) error {
	command := exec.Command(host.qemuImg, arguments...)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	if err := spawn(command); err != nil {
		return err
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("qemu-img %s: %s", arguments[0], strings.TrimSpace(complaint.String()))
	}
	return nil
}

// flatFile is the file that the simulator expects beside a disk's.
func flatFile(file string) string { return strings.TrimSuffix(file, ".vmdk") + "-flat.vmdk" }

// createDisk makes a disk of so many bytes: a child where there is a parent (then 0 is as many as that
// has), else a descriptor and a sparse flat extent.
func createDisk(file, parent string, size int64) error {
	if err := removeDisk(file); err != nil {
		return err
	}
	arguments := []string{"create", "-q", "-f", "vmdk"}
	if parent != "" {
		arguments = append(arguments, "-b", parent, "-F", "vmdk", file)
		if err := image(arguments...); err != nil {
			return err
		}
		// It has no extent of its own, but the simulator counts on one when it deletes.
		if err := os.WriteFile(flatFile(file), nil, 0o600); err != nil {
			return err
		}
	} else {
		if err := image(append(arguments, "-o", "subformat=monolithicFlat", file, fmt.Sprint(size))...); err != nil {
			return err
		}
	}
	ownDisks.Store(file, nil)
	return nil
}

// createBranch makes a child of a disk that a running QEMU has locked. qemu-img is told to look at it
// without a lock, and writes that into the child as the parent's name: the name is put right afterwards.
func createBranch(file, parent string) error {
	unlocked := "json:" + text(dict{"driver": "vmdk", "file": dict{
		"driver": "file", "filename": parent, "locking": "off",
	}})
	if err := createDisk(file, unlocked, 0); err != nil {
		return err
	}
	stream, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer stream.Close()
	// The descriptor follows the header's sector: 20 sectors of text, the rest of them zero.
	descriptor := make([]byte, 20*512)
	if _, err := stream.ReadAt(descriptor, 512); err != nil {
		return err
	}
	const hint = "parentFileNameHint="
	begin := bytes.Index(descriptor, []byte(hint))
	length := -1
	if begin >= 0 {
		length = bytes.IndexByte(descriptor[begin:], '\n')
	}
	if length < 0 {
		return fmt.Errorf("%s: its descriptor names no parent", file)
	}
	corrected := append([]byte(nil), descriptor[:begin]...)
	corrected = append(corrected, fmt.Sprintf("%s%q", hint, parent)...)
	corrected = append(corrected, descriptor[begin+length:]...)
	if len(corrected) > len(descriptor) {
		return fmt.Errorf("%s: its parent's name is too long", file)
	}
	_, err = stream.WriteAt(append(corrected, make([]byte, len(descriptor)-len(corrected))...), 512)
	return err
}

// volatileDisks makes what is written to that has to be forgotten.
func volatileDisks(h hardware, directory string) error {
	for _, disk := range h.disks {
		if disk.volatile {
			if err := volatileDisk(disk, directory); err != nil {
				return err
			}
		}
	}
	return nil
}

func volatileDisk(d diskDevice, directory string) error {
	overlay := filepath.Join(directory, fmt.Sprintf("volatile-%d.qcow2", d.key))
	return image("create", "-q", "-f", "qcow2", "-b", d.file, "-F", "vmdk", overlay)
}

// prepareDisks puts in what a server does for the disks of a specification, before it is applied: a UUID,
// the parent of one that is there, and a complaint about a parent that is not.
func prepareDisks(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	return eachDisk(spec, func(change *types.VirtualDeviceConfigSpec, _ *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault {
		if backing.Uuid == "" {
			backing.Uuid = uuid.New().String()
		}
		if backing.Parent != nil {
			if file, err := datastoreFile(backing.Parent.FileName); err != nil || !exists(file) {
				return &types.FileNotFound{FileFault: types.FileFault{File: backing.Parent.FileName}}
			}
		}
		if file, err := datastoreFile(backing.FileName); err == nil {
			if known, ok := parents.Load(file); ok && change.FileOperation == "" && backing.Parent == nil {
				parent := known.(types.VirtualDiskFlatVer2BackingInfo)
				backing.Parent = &parent
			} else if change.FileOperation != "" {
				parents.Delete(file)
				if backing.Parent != nil {
					parents.Store(file, *backing.Parent)
				}
			}
		}
		// The simulator takes a disk for there only if it has a second file.
		if file, err := datastoreFile(backing.FileName); err == nil && change.FileOperation == "" && exists(file) && !exists(flatFile(file)) {
			if err := os.WriteFile(flatFile(file), nil, 0o600); err != nil {
				return &types.GenericVmConfigFault{Reason: err.Error()}
			}
		}
		return nil
	})
}

// fillDisks makes disks of the empty files that the simulator made for those of a specification.
func fillDisks(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if !host.enabled {
		return nil
	}
	return eachDisk(spec, func(change *types.VirtualDeviceConfigSpec, disk *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault {
		if change.FileOperation == "" {
			return nil
		}
		file, err := datastoreFile(backing.FileName)
		if err == nil {
			parent := ""
			if backing.Parent != nil {
				parent, err = datastoreFile(backing.Parent.FileName)
			}
			size := disk.CapacityInBytes
			if size == 0 {
				size = disk.CapacityInKB << 10
			}
			if err == nil {
				err = createDisk(file, parent, size)
			}
		}
		if err != nil {
			return &types.GenericVmConfigFault{Reason: fmt.Sprintf("%s: %v", backing.FileName, err)}
		}
		return nil
	})
}

// eachDisk calls something for each disk that a specification adds.
func eachDisk(
	spec *types.VirtualMachineConfigSpec,
	do func(*types.VirtualDeviceConfigSpec, *types.VirtualDisk, *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault,
) types.BaseMethodFault {
	for _, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		disk, ok := c.Device.(*types.VirtualDisk)
		if !ok || c.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			continue
		}
		if backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			if fault := do(c, disk, backing); fault != nil {
				return fault
			}
		}
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// checkDisk says why ESXi would not run a disk: it runs none of the formats of other products.
func checkDisk(file string) error {
	if _, own := ownDisks.Load(file); own {
		return nil
	}
	stream, err := os.Open(file)
	if err != nil {
		return err
	}
	defer stream.Close()
	head := make([]byte, 64<<10)
	n, _ := stream.Read(head)
	for _, foreign := range []string{"streamOptimized", "monolithicSparse", "twoGbMaxExtentSparse"} {
		if bytes.Contains(head[:n], []byte(`createType="`+foreign+`"`)) {
			return fmt.Errorf("unsupported or invalid disk type: %s is %s. Ensure that the disk has been imported", file, foreign)
		}
	}
	return nil
}
