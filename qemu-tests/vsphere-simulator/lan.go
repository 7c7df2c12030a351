package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"unsafe"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// lan is the network that all port groups lead to when there is one: a switch in this process, with every
// guest's vNICs, this machine (by a tap, which goes with the process), and somebody who gives addresses by
// DHCP. Nothing is forwarded beyond it.
type lan struct {
	// This machine's address, and the file of the socket where QEMU plugs in.
	own    net.IP
	socket string

	mu    sync.Mutex
	ports map[*lanPort]bool
	// Which port a station was last heard on, and which address it was given.
	stations map[[6]byte]*lanPort
	leases   map[[6]byte]net.IP
}

// lanPort is a place to plug in. What it is too slow for is lost, as on a wire.
type lanPort struct {
	frames chan []byte
	// Whether anything was heard there. QEMU's stream stops for good at a frame that a vNIC does not take because
	// its guest has not brought it up, so nothing is sent to one that was silent so far.
	heard bool
}

const (
	// The largest frame: QEMU's NET_BUFSIZE.
	frameMax = 68 << 10
	// The first address that is given, and how many.
	firstLease, leaseCount = 10, 200
	// How many frames wait for one port.
	queued = 512
)

// The networks to choose from are those of RFC 2544, which are for tests: 198.18.0.0/15, here in pieces of 256.
func lanNetworks() []net.IP {
	var all []net.IP
	for n := 0; n < 256; n++ {
		all = append(all, net.IPv4(198, 18, byte(os.Getpid()+n), 1).To4())
	}
	return all
}

// newLan makes one; what it needs is /dev/net/tun and the right to make interfaces.
func newLan(scratch string) (*lan, error) {
	taken := make(map[string]bool)
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok {
			taken[network.IP.String()] = true
		}
	}
	var own net.IP
	for _, candidate := range lanNetworks() {
		if !taken[candidate.String()] {
			own = candidate
			break
		}
	}
	if own == nil {
		return nil, fmt.Errorf("every network of 198.18.0.0/16 is in use")
	}
	l := &lan{
		own: own, socket: filepath.Join(scratch, "lan"),
		ports: make(map[*lanPort]bool), stations: make(map[[6]byte]*lanPort), leases: make(map[[6]byte]net.IP),
	}
	tap, err := openTap(fmt.Sprintf("vsim%d", own[2]), own)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		return nil, err
	}
	go l.serve(tap, func(frame []byte) error { _, err := syscall.Write(tap, frame); return err })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				log.Printf("lan: %v", err)
				return
			}
			go l.plug(connection)
		}
	}()
	return l, nil
}

// openTap makes this machine's interface (Documentation/networking/tuntap.rst, netdevice(7)).
func openTap(name string, own net.IP) (int, error) {
	const tunSetIff, tap, noPacketInfo = 0x400454ca, 0x2, 0x1000
	tun, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	// struct ifreq: a name and a union.
	request := func() *[40]byte {
		var ifreq [40]byte
		copy(ifreq[:15], name)
		return &ifreq
	}
	ioctl := func(fd int, what uintptr, ifreq *[40]byte) error {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), what, uintptr(unsafe.Pointer(ifreq))); errno != 0 {
			return errno
		}
		return nil
	}
	ifreq := request()
	binary.LittleEndian.PutUint16(ifreq[16:], tap|noPacketInfo)
	if err := ioctl(tun, tunSetIff, ifreq); err != nil {
		return -1, fmt.Errorf("making the interface %s: %w", name, err)
	}
	control, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(control)
	set := func(what uintptr, address net.IP) error {
		ifreq := request()
		binary.LittleEndian.PutUint16(ifreq[16:], syscall.AF_INET)
		copy(ifreq[20:], address)
		return ioctl(control, what, ifreq)
	}
	if err := set(syscall.SIOCSIFADDR, own); err != nil {
		return -1, fmt.Errorf("the address of %s: %w", name, err)
	}
	if err := set(syscall.SIOCSIFNETMASK, net.IPv4(255, 255, 255, 0).To4()); err != nil {
		return -1, fmt.Errorf("the netmask of %s: %w", name, err)
	}
	ifreq = request()
	binary.LittleEndian.PutUint16(ifreq[16:], syscall.IFF_UP|syscall.IFF_RUNNING)
	if err := ioctl(control, syscall.SIOCSIFFLAGS, ifreq); err != nil {
		return -1, fmt.Errorf("bringing %s up: %w", name, err)
	}
	return tun, nil
}

// serve carries what this machine says.
func (l *lan) serve(tap int, write func([]byte) error) {
	port := l.newPort(write)
	defer l.remove(port)
	l.mu.Lock()
	port.heard = true
	l.mu.Unlock()
	buffer := make([]byte, frameMax)
	for {
		n, err := syscall.Read(tap, buffer)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			log.Printf("lan: %v", err)
			return
		}
		l.carry(port, buffer[:n])
	}
}

// plug carries what a vNIC says: frames with their length before them (QEMU's -netdev stream).
func (l *lan) plug(connection net.Conn) {
	defer connection.Close()
	port := l.newPort(func(frame []byte) error {
		message := make([]byte, 4+len(frame))
		binary.BigEndian.PutUint32(message, uint32(len(frame)))
		copy(message[4:], frame)
		_, err := connection.Write(message)
		return err
	})
	defer l.remove(port)
	buffer := make([]byte, frameMax)
	for {
		var length [4]byte
		if _, err := io.ReadFull(connection, length[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(length[:])
		if n > frameMax {
			return
		}
		if _, err := io.ReadFull(connection, buffer[:n]); err != nil {
			return
		}
		l.carry(port, buffer[:n])
	}
}

// newPort is one that writes so.
func (l *lan) newPort(write func(frame []byte) error) *lanPort {
	port := &lanPort{frames: make(chan []byte, queued)}
	go func() {
		for frame := range port.frames {
			_ = write(frame)
		}
	}()
	l.mu.Lock()
	l.ports[port] = true
	l.mu.Unlock()
	return port
}

func (l *lan) remove(port *lanPort) {
	l.mu.Lock()
	delete(l.ports, port)
	close(port.frames)
	for station, at := range l.stations {
		if at == port {
			delete(l.stations, station)
		}
	}
	l.mu.Unlock()
}

// carry brings a frame where it belongs: to all where that is not known.
func (l *lan) carry(from *lanPort, frame []byte) {
	if len(frame) < 14 {
		return
	}
	var to, station [6]byte
	copy(to[:], frame)
	copy(station[:], frame[6:])
	answer := l.dhcp(frame, station)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ports[from] {
		return
	}
	l.stations[station] = from
	from.heard = true
	if answer != nil {
		from.send(answer)
		return
	}
	frame = append([]byte(nil), frame...)
	if known, ok := l.stations[to]; ok && to[0]&1 == 0 {
		if known != from {
			known.send(frame)
		}
		return
	}
	for port := range l.ports {
		if port != from && port.heard {
			port.send(frame)
		}
	}
}

func (p *lanPort) send(frame []byte) {
	select {
	case p.frames <- frame:
	default:
	}
}

// dhcp answers a question for an address (RFC 2131); nil if the frame is none.
func (l *lan) dhcp(frame []byte, station [6]byte) []byte {
	const ethernet, ip, udp, bootp = 14, 20, 8, 240
	if len(frame) < ethernet+ip+udp+bootp || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[ethernet] != 0x45 ||
		frame[ethernet+9] != syscall.IPPROTO_UDP || binary.BigEndian.Uint16(frame[ethernet+ip+2:]) != 67 {
		return nil
	}
	question := frame[ethernet+ip+udp:]
	var kind byte
	for at := bootp; at+1 < len(question) && question[at] != 255; {
		if question[at] == 0 {
			at++
			continue
		}
		if question[at] == 53 && at+2 < len(question) {
			kind = question[at+2]
		}
		at += 2 + int(question[at+1])
	}
	const discover, offer, request, acknowledge = 1, 2, 3, 5
	var answers byte
	switch kind {
	case discover:
		answers = offer
	case request:
		answers = acknowledge
	default:
		return nil
	}
	address := l.lease(station)
	if address == nil {
		return nil
	}
	reply := make([]byte, bootp, bootp+64)
	copy(reply, question[:bootp])
	reply[0] = 2
	copy(reply[12:16], []byte{0, 0, 0, 0})
	copy(reply[16:20], address)
	copy(reply[20:24], l.own)
	option := func(code byte, value ...byte) {
		reply = append(reply, code, byte(len(value)))
		reply = append(reply, value...)
	}
	option(53, answers)
	option(54, l.own...)
	option(51, 0, 0, 0x0e, 0x10)
	option(1, 255, 255, 255, 0)
	option(3, l.own...)
	reply = append(reply, 255)
	if answers == acknowledge {
		go addressTold(station, address)
	}
	return datagram(station, l.own, 67, 68, reply)
}

// lease is the address of a station; nil where all are given.
func (l *lan) lease(station [6]byte) net.IP {
	l.mu.Lock()
	defer l.mu.Unlock()
	if address, ok := l.leases[station]; ok {
		return address
	}
	if len(l.leases) >= leaseCount {
		return nil
	}
	address := net.IPv4(l.own[0], l.own[1], l.own[2], byte(firstLease+len(l.leases))).To4()
	l.leases[station] = address
	return address
}

// datagram is a frame with a UDP datagram to everybody at one station.
func datagram(to [6]byte, from net.IP, source, destination uint16, payload []byte) []byte {
	frame := make([]byte, 42, 42+len(payload))
	copy(frame, to[:])
	copy(frame[6:], []byte{0x02, 0x56, 0x53, 0x49, 0x4d, 0x01})
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	ip := frame[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, syscall.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	copy(ip[12:], from)
	copy(ip[16:], []byte{255, 255, 255, 255})
	var sum uint32
	for at := 0; at < len(ip); at += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[at:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := frame[34:42]
	binary.BigEndian.PutUint16(udp, source)
	binary.BigEndian.PutUint16(udp[2:], destination)
	// Without a checksum, as IPv4 allows.
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	return append(frame, payload...)
}

// addressTold says of the machine with this vNIC what its tools would: its address.
func addressTold(station [6]byte, address net.IP) {
	mac, told := net.HardwareAddr(station[:]).String(), address.String()
	machines.Lock()
	var all []*machine
	for _, m := range machines.known {
		all = append(all, m)
	}
	machines.Unlock()
	for _, m := range all {
		registry().WithLock(m.vm, func() { tellAddress(m.vm, mac, told) })
	}
}

// tellAddress changes guest.net where it has this vNIC; the machine's lock is held.
func tellAddress(vm *simulator.VirtualMachine, mac, address string) {
	net := append([]types.GuestNicInfo(nil), vm.Guest.Net...)
	for i := range net {
		if net[i].MacAddress != mac {
			continue
		}
		net[i].IpAddress = []string{address}
		registry().Update(vm, []types.PropertyChange{
			{Name: "guest.net", Val: net},
			{Name: "guest.ipAddress", Val: address},
			{Name: "summary.guest.ipAddress", Val: address},
		})
		return
	}
}
