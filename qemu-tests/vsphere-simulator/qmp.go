package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitor is a connection to QEMU's monitor (QMP).
type monitor struct {
	connection net.Conn

	mu      sync.Mutex
	next    int
	waiting map[int]chan message
	// Told once each: what waits for an event.
	events map[chan message]func(message) bool
	closed bool
}

// message is what QEMU sends.
type message struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
		Status string `json:"status"`
	} `json:"data"`
}

var errMonitorClosed = errors.New("QEMU ended")

func newMonitor(connection net.Conn) (*monitor, error) {
	m := &monitor{
		connection: connection, waiting: make(map[int]chan message), events: make(map[chan message]func(message) bool),
	}
	go m.read()
	_, err := m.execute("qmp_capabilities", nil)
	return m, err
}

func (m *monitor) read() {
	scanner := bufio.NewScanner(m.connection)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var got message
		if json.Unmarshal(scanner.Bytes(), &got) != nil {
			continue
		}
		m.mu.Lock()
		if got.ID != nil {
			if answer, ok := m.waiting[*got.ID]; ok {
				delete(m.waiting, *got.ID)
				answer <- got
			}
		} else if got.Event != "" {
			for told, wanted := range m.events {
				if wanted(got) {
					delete(m.events, told)
					told <- got
				}
			}
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	m.closed = true
	for id, answer := range m.waiting {
		delete(m.waiting, id)
		close(answer)
	}
	for told := range m.events {
		delete(m.events, told)
		close(told)
	}
	m.mu.Unlock()
}

// execute runs one command.
func (m *monitor) execute(command string, arguments dict) (json.RawMessage, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, errMonitorClosed
	}
	m.next++
	id := m.next
	answer := make(chan message, 1)
	m.waiting[id] = answer
	request := dict{"execute": command, "id": id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	_, err := m.connection.Write([]byte(text(request) + "\n"))
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case got, ok := <-answer:
		if !ok {
			return nil, errMonitorClosed
		}
		if got.Error != nil {
			return nil, fmt.Errorf("%s: %s", command, got.Error.Desc)
		}
		return got.Return, nil
	case <-time.After(60 * time.Second):
		return nil, fmt.Errorf("%s: no answer of QEMU's monitor in a minute", command)
	}
}

// expect waits for an event from now on; call what it gives to wait.
func (m *monitor) expect(wanted func(message) bool) func(time.Duration) error {
	told := make(chan message, 1)
	m.mu.Lock()
	if m.closed {
		close(told)
	} else {
		m.events[told] = wanted
	}
	m.mu.Unlock()
	return func(limit time.Duration) error {
		select {
		case _, ok := <-told:
			if !ok {
				return errMonitorClosed
			}
			return nil
		case <-time.After(limit):
			m.mu.Lock()
			delete(m.events, told)
			m.mu.Unlock()
			return fmt.Errorf("an event of QEMU's did not come in %s", limit)
		}
	}
}
