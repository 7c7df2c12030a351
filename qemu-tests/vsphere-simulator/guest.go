package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// host is what guests run on: this machine.
var host struct {
	// Whether there are guests at all.
	enabled bool
	// The datastore's directory.
	datastore string
	// A directory for what is of no use once they ended.
	scratch string
	// The network of its guests; without, each has QEMU's user-mode network.
	lan     *lan
	qemu    string
	qemuImg string
	guests  sync.Map
	number  int64
}

// guest is a running QEMU.
type guest struct {
	directory string
	command   *exec.Cmd
	monitor   *monitor
	ports     map[int]*serialPort
	// The addresses with which its vNICs began, by key: what its guest has made of them is its own affair.
	macs map[int]string
	// The slots of vNICs that came while it ran, by key.
	slots  map[int]int
	memory *os.File
	// The block nodes of each disk by its key: what the device has comes first.
	nodes map[int][]string
	// Counts children of disks that came while it ran.
	branches int
	// The guestinfo it started with.
	guestinfo map[string]string
	// Closed when QEMU is gone.
	done chan struct{}
	// Set when its end is asked for: then it is no news.
	asked int32
}

// spawns starts programs on one thread that never ends: they are to die with it, and Linux counts the
// thread as the parent (prctl(2), PR_SET_PDEATHSIG).
var spawns = func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for do := range work {
			do()
		}
	}()
	return work
}()

func spawn(command *exec.Cmd) error {
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	spawns <- func() { result <- command.Start() }
	return <-result
}

// socketPair makes two connected sockets: one for here, one to be inherited.
func socketPair() (net.Conn, *os.File, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours := os.NewFile(uintptr(pair[0]), "socket")
	defer ours.Close()
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	connection, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return connection, theirs, nil
}

// startGuest starts QEMU on this hardware; with the memory of another guest, which is then this one's, it
// waits for the state of that. heard is called when the guest first writes to a serial port.
func startGuest(h hardware, slots map[int]int, memory *os.File, heard func()) (*guest, error) {
	clone := memory != nil
	if !clone {
		var err error
		if memory, err = newMemory(h.memory); err != nil {
			return nil, err
		}
	}
	started, err := startOn(h, slots, memory, clone, heard)
	if err != nil {
		memory.Close()
	}
	return started, err
}

func startOn(h hardware, slots map[int]int, memory *os.File, clone bool, heard func()) (*guest, error) {
	g := &guest{
		directory: filepath.Join(host.scratch, fmt.Sprint(atomic.AddInt64(&host.number, 1))),
		ports:     make(map[int]*serialPort),
		macs:      make(map[int]string),
		slots:     make(map[int]int),
		nodes:     make(map[int][]string),
		guestinfo: h.guestinfo,
		memory:    memory,
		done:      make(chan struct{}),
	}
	for key, slot := range slots {
		g.slots[key] = slot
	}
	for _, disk := range h.disks {
		g.nodes[disk.key] = disk.nodeNames()
	}
	for _, card := range h.cards {
		g.macs[card.key] = card.mac
	}
	if err := os.Mkdir(g.directory, 0o700); err != nil {
		return nil, err
	}
	if err := volatileDisks(h, g.directory); err != nil {
		return nil, err
	}
	args, err := arguments(h, g.directory, g.slots, clone)
	if err != nil {
		return nil, err
	}
	var inherited []*os.File
	defer func() {
		for _, file := range inherited {
			file.Close()
		}
	}()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	inherited = append(inherited, theirs)
	var once sync.Once
	for _, device := range h.serials {
		line, theirs, err := socketPair()
		if err != nil {
			return nil, err
		}
		inherited = append(inherited, theirs)
		if device.file != "" {
			line.Close()
			continue
		}
		g.ports[device.key] = newSerialPort(line, identityOf(h), func() { once.Do(heard) })
	}

	output, err := os.Create(filepath.Join(g.directory, "log"))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	g.command = exec.Command(host.qemu, args...)
	g.command.Dir = g.directory
	g.command.Stdout, g.command.Stderr = output, output
	// The memory is not to be closed with the rest.
	g.command.ExtraFiles = append([]*os.File{inherited[0], memory}, inherited[1:]...)
	if err := spawn(g.command); err != nil {
		return nil, err
	}
	host.guests.Store(g, nil)
	go func() {
		err := g.command.Wait()
		log.Printf("%s: QEMU %d ended: %v", h.name, g.command.Process.Pid, err)
		for _, port := range g.ports {
			port.close()
		}
		ours.Close()
		memory.Close()
		host.guests.Delete(g)
		close(g.done)
	}()
	if g.monitor, err = newMonitor(ours); err != nil {
		g.end()
		return nil, fmt.Errorf("QEMU did not start: %s", g.complaint())
	}
	for _, device := range h.serials {
		if port := g.ports[device.key]; port != nil {
			port.dial(device.target)
		}
	}
	for _, card := range h.cards {
		if !card.connected {
			if err := g.link(card, false); err != nil {
				g.end()
				return nil, err
			}
		}
	}
	return g, nil
}

// complaint is what QEMU said last.
func (g *guest) complaint() string {
	data, err := os.ReadFile(filepath.Join(g.directory, "log"))
	if err != nil || len(data) == 0 {
		return "it said nothing"
	}
	if len(data) > 1000 {
		data = data[len(data)-1000:]
	}
	return string(data)
}

// end ends QEMU and waits until it is gone.
func (g *guest) end() {
	atomic.StoreInt32(&g.asked, 1)
	if g.monitor != nil {
		_, _ = g.monitor.execute("quit", nil)
	}
	select {
	case <-g.done:
	case <-time.After(5 * time.Second):
	}
	_ = g.command.Process.Kill()
	<-g.done
	_ = os.RemoveAll(g.directory)
}

// ended tells whether its end was asked for here.
func (g *guest) wasAsked() bool { return atomic.LoadInt32(&g.asked) != 0 }

// link plugs a vNIC's cable in or pulls it out.
func (g *guest) link(card cardDevice, up bool) error {
	_, err := g.monitor.execute("set_link", dict{"name": card.name(), "up": up})
	return err
}

// addDisk plugs a disk in.
func (g *guest) addDisk(d diskDevice) error {
	if d.volatile {
		if err := volatileDisk(d, g.directory); err != nil {
			return err
		}
	}
	for _, node := range diskNodes(d, g.directory) {
		if _, err := g.monitor.execute("blockdev-add", node); err != nil {
			return err
		}
	}
	g.nodes[d.key] = d.nodeNames()
	_, err := g.monitor.execute("device_add", d.device())
	return err
}

// removeDisk pulls it out.
func (g *guest) removeDisk(d diskDevice) error {
	if err := g.removeDevice(d.name()); err != nil {
		return err
	}
	nodes := g.nodes[d.key]
	delete(g.nodes, d.key)
	for _, node := range nodes {
		if _, err := g.monitor.execute("blockdev-del", dict{"node-name": node}); err != nil {
			return err
		}
	}
	return nil
}

func (g *guest) removeDevice(id string) error {
	gone := g.monitor.expect(func(m message) bool { return m.Event == "DEVICE_DELETED" && m.Data.Device == id })
	if _, err := g.monitor.execute("device_del", dict{"id": id}); err != nil {
		return err
	}
	return gone(20 * time.Second)
}

// addCard plugs a vNIC in.
func (g *guest) addCard(c cardDevice) error {
	taken := make(map[int]bool)
	for _, slot := range g.slots {
		taken[slot] = true
	}
	for slot := 0; slot < cardSlots; slot++ {
		if taken[slot] {
			continue
		}
		g.slots[c.key], g.macs[c.key] = slot, c.mac
		if _, err := g.monitor.execute("netdev_add", c.network()); err != nil {
			return err
		}
		if _, err := g.monitor.execute("device_add", c.device(g.slots)); err != nil {
			return err
		}
		if !c.connected {
			return g.link(c, false)
		}
		return nil
	}
	return errors.New("no more slots for vNICs that come while the machine runs")
}

// removeCard pulls it out. One that was there at the start cannot be: its cable is.
func (g *guest) removeCard(c cardDevice) error {
	if _, ok := g.slots[c.key]; !ok {
		return g.link(c, false)
	}
	if err := g.removeDevice(c.name()); err != nil {
		return err
	}
	delete(g.slots, c.key)
	_, err := g.monitor.execute("netdev_del", dict{"id": fmt.Sprintf("net-%d", c.key)})
	return err
}

// endGuests ends all of them, at the program's end.
func endGuests() {
	var group sync.WaitGroup
	host.guests.Range(func(key, _ interface{}) bool {
		group.Add(1)
		go func() {
			defer group.Done()
			key.(*guest).end()
		}()
		return true
	})
	group.Wait()
	if host.scratch != "" {
		_ = os.RemoveAll(host.scratch)
	}
}
