package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// Telnet's bytes (RFC 854) and options: binary (856), suppress go ahead (858), and VMware's 232.
const (
	telnetSE   = 240
	telnetSB   = 250
	telnetWILL = 251
	telnetWONT = 252
	telnetDO   = 253
	telnetDONT = 254
	telnetIAC  = 255

	optionBinary  = 0
	optionGoAhead = 3
	optionVMware  = 232
)

// The commands of option 232; source: "Using a Proxy with vSphere Virtual Serial Ports".
const (
	knownSuboptions1  = 0
	knownSuboptions2  = 1
	unknownSuboption1 = 2
	vmotionBegin      = 40
	vmotionGoAhead    = 41
	vmotionNotNow     = 43
	vmotionPeer       = 44
	vmotionPeerOK     = 45
	vmotionComplete   = 46
	vmotionAbort      = 48
	doProxy           = 70
	willProxy         = 71
	wontProxy         = 73
	vmVCUUID          = 80
	getVMVCUUID       = 81
	vmName            = 82
	getVMName         = 83
	vmBIOSUUID        = 84
	getVMBIOSUUID     = 85
	vmLocationUUID    = 86
	getVMLocationUUID = 87
)

// ownCommands are those this end says it knows.
var ownCommands = []byte{
	knownSuboptions1, knownSuboptions2, unknownSuboption1, 3, vmotionBegin, vmotionGoAhead, vmotionNotNow,
	vmotionPeer, vmotionPeerOK, vmotionComplete, vmotionAbort, doProxy, willProxy, wontProxy, vmVCUUID,
	getVMVCUUID, vmName, getVMName, vmBIOSUUID, getVMBIOSUUID, vmLocationUUID, getVMLocationUUID,
}

// identity is what a port says of its machine.
type identity struct {
	name, instanceUUID, biosUUID, locationID string
}

func identityOf(h hardware) identity {
	return identity{h.name, h.instanceUUID, h.uuid, h.locationID}
}

// spacedUUID writes a UUID as ESXi does: `50 12 af 03 04 05 06 07-08 09 0a 0b 0c 0d 0e 0f`.
func spacedUUID(uuid string) string {
	digits := strings.ToLower(strings.ReplaceAll(uuid, "-", ""))
	if len(digits) != 32 {
		return ""
	}
	var out strings.Builder
	for i := 0; i < 32; i += 2 {
		switch i {
		case 0:
		case 16:
			out.WriteByte('-')
		default:
			out.WriteByte(' ')
		}
		out.WriteString(digits[i : i+2])
	}
	return out.String()
}

// target is where a port is dialled to.
type target struct {
	service, direction, proxy string
}

// address is the host and port to dial, whether telnet is spoken there, and whether a proxy is.
func (t target) address() (address string, telnet, proxied bool, err error) {
	uri := t.service
	if t.proxy != "" {
		uri, proxied = t.proxy, true
	} else if t.direction == "server" {
		return "", false, false, fmt.Errorf("%s: listening for a serial port is not simulated", uri)
	}
	parts := strings.SplitN(uri, "://", 2)
	if len(parts) != 2 {
		return "", false, false, fmt.Errorf("%q is no URI", uri)
	}
	switch parts[0] {
	case "telnet":
		telnet = true
	case "tcp":
	default:
		return "", false, false, fmt.Errorf("%q: only telnet:// and tcp:// are simulated", uri)
	}
	address = strings.TrimSuffix(parts[1], "/")
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "", false, false, fmt.Errorf("%q: %w", uri, err)
	}
	return address, telnet || proxied, proxied, nil
}

// link is one connection of a port.
type link struct {
	connection net.Conn
	telnet     bool
	identity   identity

	writing sync.Mutex
	// Whether bytes go as they are in that direction.
	binaryOut, binaryIn bool

	// The answers that somebody waits for, by command.
	waiting map[byte]chan []byte
	mu      sync.Mutex
	closed  chan struct{}
	once    sync.Once
}

// negotiationLimit is how long the other end may take to answer.
const negotiationLimit = 10 * time.Second

var errLinkClosed = errors.New("the connection ended")

// openLink dials, negotiates, and delivers what comes. A proxy is asked to take the port or, by the target
// of a migration, which has a cookie for it, to take it for a port that it has.
func openLink(t target, who identity, cookie []byte, deliver func([]byte)) (*link, error) {
	address, telnet, proxied, err := t.address()
	if err != nil {
		return nil, err
	}
	connection, err := net.DialTimeout("tcp", address, negotiationLimit)
	if err != nil {
		return nil, err
	}
	l := &link{
		connection: connection, telnet: telnet, identity: who,
		waiting: make(map[byte]chan []byte), closed: make(chan struct{}),
	}
	known, refused := l.await(knownSuboptions2), l.await(wontProxy)
	accepted := l.await(willProxy)
	if cookie != nil {
		accepted = l.await(vmotionPeerOK)
	}
	go l.read(deliver)
	if !telnet {
		return l, nil
	}
	l.send([]byte{
		telnetIAC, telnetWILL, optionBinary, telnetIAC, telnetDO, optionBinary,
		telnetIAC, telnetWILL, optionGoAhead, telnetIAC, telnetDO, optionGoAhead,
		telnetIAC, telnetWILL, optionVMware,
	})
	if !proxied {
		return l, nil
	}
	if _, err := l.answer(known); err != nil {
		l.close()
		return nil, fmt.Errorf("the commands the proxy knows: %w", err)
	}
	switch {
	case cookie != nil:
		l.command(vmotionPeer, cookie)
	case t.direction == "server":
		l.command(doProxy, []byte("S"+t.service))
	default:
		l.command(doProxy, []byte("C"+t.service))
	}
	select {
	case <-accepted:
		return l, nil
	case <-refused:
		err = errors.New("the proxy refused")
	case <-l.closed:
		err = errLinkClosed
	case <-time.After(negotiationLimit):
		err = errors.New("the proxy does not answer")
	}
	l.close()
	return nil, err
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.closed)
		l.connection.Close()
	})
}

// await prepares to wait for a command.
func (l *link) await(command byte) chan []byte {
	answer := make(chan []byte, 1)
	l.mu.Lock()
	l.waiting[command] = answer
	l.mu.Unlock()
	return answer
}

func (l *link) answer(from chan []byte) ([]byte, error) {
	select {
	case content := <-from:
		return content, nil
	case <-l.closed:
		return nil, errLinkClosed
	case <-time.After(negotiationLimit):
		return nil, fmt.Errorf("no answer in %s", negotiationLimit)
	}
}

func (l *link) send(data []byte) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if _, err := l.connection.Write(data); err != nil {
		go l.close()
	}
}

// command sends a message of option 232.
func (l *link) command(command byte, content []byte) {
	out := []byte{telnetIAC, telnetSB, optionVMware, command}
	out = append(out, bytes.ReplaceAll(content, []byte{telnetIAC}, []byte{telnetIAC, telnetIAC})...)
	l.send(append(out, telnetIAC, telnetSE))
}

// data sends what the guest wrote.
func (l *link) data(data []byte) {
	if !l.telnet {
		l.send(data)
		return
	}
	out := make([]byte, 0, len(data)+16)
	l.mu.Lock()
	binary := l.binaryOut
	l.mu.Unlock()
	for _, b := range data {
		out = append(out, b)
		switch {
		case b == telnetIAC:
			out = append(out, telnetIAC)
		case b == '\r' && !binary:
			out = append(out, 0)
		}
	}
	l.send(out)
}

// read parses what comes until the connection ends.
func (l *link) read(deliver func([]byte)) {
	defer l.close()
	buffer := make([]byte, 16<<10)
	var parser telnetParser
	for {
		n, err := l.connection.Read(buffer)
		if n > 0 && !l.telnet {
			deliver(append([]byte(nil), buffer[:n]...))
		} else if n > 0 {
			l.mu.Lock()
			binary := l.binaryIn
			l.mu.Unlock()
			parser.feed(buffer[:n], binary, deliver, l.negotiate, l.subnegotiate)
		}
		if err != nil {
			return
		}
	}
}

// negotiate answers WILL, WONT, DO and DONT. What is agreed to was asked for at the beginning.
func (l *link) negotiate(verb, option byte) {
	known := option == optionBinary || option == optionGoAhead || option == optionVMware
	switch {
	case verb == telnetDO && !known:
		l.send([]byte{telnetIAC, telnetWONT, option})
	case verb == telnetWILL && !known:
		l.send([]byte{telnetIAC, telnetDONT, option})
	case verb == telnetDO && option == optionVMware:
		l.command(knownSuboptions1, ownCommands)
	case option == optionBinary:
		l.mu.Lock()
		switch verb {
		case telnetDO, telnetDONT:
			l.binaryOut = verb == telnetDO
		default:
			l.binaryIn = verb == telnetWILL
		}
		l.mu.Unlock()
	}
}

// subnegotiate takes a message of option 232.
func (l *link) subnegotiate(content []byte) {
	if len(content) < 2 || content[0] != optionVMware {
		return
	}
	command, rest := content[1], append([]byte(nil), content[2:]...)
	switch command {
	case getVMVCUUID:
		l.command(vmVCUUID, []byte(spacedUUID(l.identity.instanceUUID)))
	case getVMName:
		l.command(vmName, []byte(l.identity.name))
	case getVMBIOSUUID:
		l.command(vmBIOSUUID, []byte(spacedUUID(l.identity.biosUUID)))
	case getVMLocationUUID:
		l.command(vmLocationUUID, []byte(spacedUUID(l.identity.locationID)))
	default:
		l.mu.Lock()
		answer, ok := l.waiting[command]
		delete(l.waiting, command)
		l.mu.Unlock()
		if ok {
			answer <- rest
		} else if bytes.IndexByte(ownCommands, command) < 0 {
			l.command(unknownSuboption1, []byte{command})
		}
	}
}

// telnetParser takes a stream apart, in whatever pieces it comes.
type telnetParser struct {
	state   int
	verb    byte
	content []byte
	afterCR bool
}

const (
	telnetData = iota
	telnetCommand
	telnetVerb
	telnetContent
	telnetContentCommand
)

func (p *telnetParser) feed(data []byte, binary bool, deliver func([]byte), verb func(byte, byte), content func([]byte)) {
	var plain []byte
	flush := func() {
		if len(plain) > 0 {
			deliver(plain)
			plain = nil
		}
	}
	for _, b := range data {
		switch p.state {
		case telnetData:
			switch {
			case b == telnetIAC:
				p.state = telnetCommand
			case b == 0 && p.afterCR && !binary:
			default:
				plain = append(plain, b)
			}
			p.afterCR = b == '\r'
		case telnetCommand:
			p.state = telnetData
			switch b {
			case telnetIAC:
				plain = append(plain, b)
			case telnetSB:
				p.state, p.content = telnetContent, nil
			case telnetWILL, telnetWONT, telnetDO, telnetDONT:
				p.state, p.verb = telnetVerb, b
			}
		case telnetVerb:
			p.state = telnetData
			flush()
			verb(p.verb, b)
		case telnetContent:
			if b == telnetIAC {
				p.state = telnetContentCommand
			} else {
				p.content = append(p.content, b)
			}
		case telnetContentCommand:
			switch b {
			case telnetIAC:
				p.state = telnetContent
				p.content = append(p.content, b)
			case telnetSE:
				p.state = telnetData
				flush()
				content(p.content)
			default:
				p.state = telnetContent
			}
		}
	}
	flush()
}
