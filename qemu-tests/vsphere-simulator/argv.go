package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// The processor emulation offers, as the QEMU driver has it: five-level page tables and `rep movsb` are
// slow under emulation.
const emulatedProcessor = "max,la57=off,erms=off,fsrm=off"

// Bytes that a guest is given of `guestinfo.tether.disks`, the one value that is another in a clone and not as long.
const disksLength = 512

// Slots for vNICs that come while the machine runs.
const cardSlots = 2

// Where UEFI firmware is on Debian.
const (
	uefiCode      = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	uefiVariables = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// The numbers under which QEMU inherits its monitor's socket, its memory, and its serial ports' sockets.
const (
	monitorDescriptor = 3
	memoryDescriptor  = 4
	serialDescriptor  = 5
)

// arguments are QEMU's for this hardware. Files that have to be there first are written to the guest's
// directory. slots says which vNICs are behind which slot, by key: those that came while it ran. A clone
// waits for what its source was.
func arguments(h hardware, directory string, slots map[int]int, clone bool) ([]string, error) {
	threads := "single"
	if h.processors > 1 {
		threads = "multi"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on", "-rtc", "base=utc",
		"-name", "guest=" + strings.ReplaceAll(h.name, ",", ",,"), "-uuid", h.uuid,
		"-machine", "q35,usb=off,sata=on,smbus=off,vmport=on,smm=off,hpet=off,dump-guest-core=off,memory-backend=ram",
		"-accel", fmt.Sprintf("tcg,thread=%s,tb-size=64", threads), "-cpu", emulatedProcessor,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%[1]d,threads=1", h.processors),
		"-m", fmt.Sprintf("%dM", h.memory),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,mem-path=/proc/self/fd/%d,share=on,size=%dM", memoryDescriptor, h.memory),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", monitorDescriptor), "-mon", "chardev=qmp,mode=control",
		"-device", "vmgenid,guid=auto",
	}
	if h.efi {
		data, err := os.ReadFile(uefiVariables)
		if err != nil {
			return nil, fmt.Errorf("UEFI firmware: %w", err)
		}
		if err := os.WriteFile(filepath.Join(directory, "uefi-variables.fd"), data, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+uefiCode,
			"-drive", "if=pflash,format=raw,unit=1,file=uefi-variables.fd")
	}
	firmware, err := firmwareFiles(h, directory)
	if err != nil {
		return nil, err
	}
	args = append(args, firmware...)
	for i, port := range h.serials {
		switch {
		case port.file != "":
			args = append(args, "-chardev", fmt.Sprintf("file,id=serial%d,append=on,path=%s", i, escape(port.file)))
		default:
			args = append(args, "-chardev", fmt.Sprintf("socket,id=serial%d,fd=%d", i, serialDescriptor+i))
		}
		args = append(args, "-device", fmt.Sprintf("isa-serial,id=port%d,chardev=serial%[1]d,index=%[1]d", i))
	}
	for _, bus := range h.buses {
		args = append(args, "-device", fmt.Sprintf("pvscsi,id=scsi%d", bus))
	}
	for _, disk := range h.disks {
		for _, node := range diskNodes(disk, directory) {
			args = append(args, "-blockdev", text(node))
		}
		args = append(args, "-device", text(disk.device()))
	}
	for slot := 0; slot < cardSlots; slot++ {
		args = append(args, "-device", fmt.Sprintf(
			"pcie-root-port,id=slot%d,chassis=%d,addr=1e.%[1]d,multifunction=on", slot, slot+1))
	}
	for _, card := range h.cards {
		args = append(args, "-netdev", text(card.network()), "-device", text(card.device(slots)))
	}
	if h.cdrom != "" {
		args = append(args, "-blockdev", text(dict{
			"driver": "raw", "node-name": "cdrom", "read-only": true,
			"file": dict{"driver": "file", "filename": h.cdrom, "read-only": true},
		}), "-device", "ide-cd,bus=ide.2,drive=cdrom,bootindex=0")
	}
	args = append(args, "-boot", "menu=off,strict=on")
	if clone {
		// The state of devices alone comes without the migration's own section.
		args = append(args, "-incoming", "defer", "-S", "-global", "migration.send-configuration=off")
	}
	return args, nil
}

// dict is a JSON object.
type dict = map[string]interface{}

func text(value dict) string {
	data, _ := json.Marshal(value)
	return string(data)
}

// escape makes a file name a value of QEMU's comma-separated options.
func escape(file string) string { return strings.ReplaceAll(file, ",", ",,") }

// firmwareFiles hands guestinfo to the guest by fw_cfg: QEMU's backdoor port knows no guestinfo.
// `guestinfo.tether.channel` is `opt/tether/channel`; a key, which is text in guestinfo, is bytes there.
func firmwareFiles(h hardware, directory string) ([]string, error) {
	var args []string
	var names []string
	for name := range h.guestinfo {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		value := []byte(h.guestinfo[name])
		// What a clone's guest finds there is as long as what its source had; a list may end in commas.
		if name == "tether.disks" && len(value) < disksLength {
			value = append(value, bytes.Repeat([]byte(","), disksLength-len(value))...)
		}
		if strings.HasSuffix(name, "tether.key") {
			value = keyBytes(h.guestinfo[name])
		}
		entry := "opt/" + strings.ReplaceAll(name, ".", "/")
		if len(entry) > 55 {
			return nil, fmt.Errorf("guestinfo.%s is too long a name for fw_cfg", name)
		}
		file := fmt.Sprintf("fw_cfg.%d", i)
		if err := os.WriteFile(filepath.Join(directory, file), value, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-fw_cfg", fmt.Sprintf("name=%s,file=%s", escape(entry), file))
	}
	return args, nil
}

// keyBytes reads a key of 32 bytes from 64 hexadecimal digits or from base64.
func keyBytes(value string) []byte {
	if key, err := hex.DecodeString(value); err == nil && len(key) == 32 {
		return key
	}
	if key, err := base64.StdEncoding.DecodeString(value); err == nil && len(key) == 32 {
		return key
	}
	return []byte(value)
}

func (d diskDevice) name() string { return fmt.Sprintf("disk-%d", d.key) }

// diskNodes are the block nodes of a disk, in the order they have to be made.
func diskNodes(d diskDevice, directory string) []dict {
	file, format := d.file, "vmdk"
	if d.volatile {
		file, format = filepath.Join(directory, fmt.Sprintf("volatile-%d.qcow2", d.key)), "qcow2"
	}
	return []dict{
		{"driver": "file", "node-name": fmt.Sprintf("file-%d", d.key), "filename": file, "discard": "unmap"},
		{"driver": format, "node-name": d.name(), "file": fmt.Sprintf("file-%d", d.key), "discard": "unmap"},
	}
}

// nodeNames are their names, the last one first.
func (d diskDevice) nodeNames() []string { return []string{d.name(), fmt.Sprintf("file-%d", d.key)} }

// device is a disk's device, as -device and device_add take it.
func (d diskDevice) device() dict {
	device := dict{
		"driver": "scsi-hd", "bus": fmt.Sprintf("scsi%d.0", d.bus), "scsi-id": d.unit, "lun": 0,
		"id": d.name(), "drive": d.name(),
	}
	if d.serial != "" {
		device["serial"] = d.serial
	}
	return device
}

func (c cardDevice) name() string { return fmt.Sprintf("nic-%d", c.key) }

func (c cardDevice) network() dict {
	if host.lan == nil {
		return dict{"type": "user", "id": fmt.Sprintf("net-%d", c.key)}
	}
	return dict{
		"type": "stream", "id": fmt.Sprintf("net-%d", c.key), "server": false,
		"addr": dict{"type": "unix", "path": host.lan.socket},
	}
}

func (c cardDevice) device(slots map[int]int) dict {
	device := dict{
		"driver": "vmxnet3", "id": c.name(), "netdev": fmt.Sprintf("net-%d", c.key), "mac": c.mac, "romfile": "",
	}
	if slot, ok := slots[c.key]; ok {
		device["bus"], device["addr"] = fmt.Sprintf("slot%d", slot), "0"
	}
	return device
}
