package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"time"
)

// redial is how long a port waits before it dials again.
const redial = 300 * time.Millisecond

// serialPort is a serial port of a guest whose backing is a URI. Between QEMU and the other end it speaks
// telnet as ESXi does. What the guest writes while nobody is connected is lost, as it is there; during a
// migration the guest does not run, so nothing is read from it.
type serialPort struct {
	line net.Conn
	who  identity

	mu     sync.Mutex
	target target
	link   *link
	// Counts what is dialled: a link of an older count has no say.
	generation int
	gone       bool
	// Held while a migration moves the port.
	moving sync.Mutex
}

func newSerialPort(line net.Conn, who identity, heard func()) *serialPort {
	p := &serialPort{line: line, who: who}
	go p.pump(heard)
	return p
}

// pump carries what the guest writes.
func (p *serialPort) pump(heard func()) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := p.line.Read(buffer)
		if n > 0 {
			heard()
			p.moving.Lock()
			p.mu.Lock()
			to := p.link
			p.mu.Unlock()
			if to != nil {
				to.data(buffer[:n])
			}
			p.moving.Unlock()
		}
		if err != nil {
			p.close()
			return
		}
	}
}

// deliver gives the guest what came for it.
func (p *serialPort) deliver(data []byte) { _, _ = p.line.Write(data) }

// dial connects the port to a target from now on, instead of where it was.
func (p *serialPort) dial(to target) {
	p.mu.Lock()
	p.generation++
	generation, old := p.generation, p.link
	p.target, p.link = to, nil
	p.mu.Unlock()
	if old != nil {
		old.close()
	}
	if to == (target{}) {
		return
	}
	go p.keep(to, generation)
}

// keep dials until it is told otherwise.
func (p *serialPort) keep(to target, generation int) {
	complained := false
	for p.current(generation) {
		l, err := openLink(to, p.who, nil, p.deliver)
		if err != nil {
			if !complained {
				log.Printf("%s: serial port to %s: %v", p.who.name, to.proxy+" "+to.service, err)
				complained = true
			}
			time.Sleep(redial)
			continue
		}
		complained = false
		p.mu.Lock()
		if p.gone || p.generation != generation {
			p.mu.Unlock()
			l.close()
			return
		}
		p.link = l
		p.mu.Unlock()
		for {
			<-l.closed
			// A migration may have put another in its place.
			p.mu.Lock()
			if p.link == l {
				p.link = nil
			}
			next := p.link
			p.mu.Unlock()
			if next == nil {
				break
			}
			l = next
		}
		time.Sleep(redial)
	}
}

func (p *serialPort) current(generation int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.gone && p.generation == generation
}

func (p *serialPort) close() {
	p.mu.Lock()
	p.gone = true
	l := p.link
	p.link = nil
	p.mu.Unlock()
	if l != nil {
		l.close()
	}
	p.line.Close()
}

// migrate moves the port to another connection, as a host's does when its machine moves to another host:
// the source announces, the target says what the proxy answered, and that the machine now runs there.
// With abort the target gives up before that. pause is how long the machine stands still in between.
func (p *serialPort) migrate(sequence []byte, abort bool, pause time.Duration) error {
	p.moving.Lock()
	defer p.moving.Unlock()
	p.mu.Lock()
	source, to := p.link, p.target
	p.mu.Unlock()
	if to.proxy == "" {
		return errors.New("a network serial port without a concentrator does not migrate")
	}
	if source == nil {
		return errors.New("the serial port is not connected")
	}
	goAhead, notNow := source.await(vmotionGoAhead), source.await(vmotionNotNow)
	source.command(vmotionBegin, sequence)
	var cookie []byte
	select {
	case cookie = <-goAhead:
	case <-notNow:
		return errors.New("the concentrator said: not now")
	case <-source.closed:
		return errLinkClosed
	case <-time.After(negotiationLimit):
		return errors.New("no answer to VMOTION-BEGIN")
	}
	giveUp := func(err error) error {
		source.command(vmotionAbort, sequence)
		return err
	}
	destination, err := openLink(to, p.who, cookie, p.deliver)
	if err != nil {
		return giveUp(fmt.Errorf("from the target: %w", err))
	}
	time.Sleep(pause)
	if abort {
		source.command(vmotionAbort, sequence)
		destination.close()
		return nil
	}
	p.mu.Lock()
	p.link = destination
	p.mu.Unlock()
	destination.command(vmotionComplete, sequence)
	source.close()
	return nil
}
