package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// control is where a test says what is to go wrong and asks what was done, on an address of its own.
//
//	GET    /calls            {"CreateVM_Task": 1, "PUT /folder": 2, ...}: requests since the last DELETE
//	DELETE /calls
//	GET    /rules            the rules in force, with how often each applied
//	POST   /rules            adds a rule: {"method": "CreateVM_Task", "do": "slow-task", "ms": 500}; {"id": 1}
//	DELETE /rules[/ID]
//	PUT    /latency          {"ms": 5}: the time each request takes longer
//	DELETE /sessions         ends every session
//	POST   /migrate/NAME     moves a machine to another host: {"host": "", "abort": false, "ms": 0}
//	POST   /end/NAME         ends a machine's guest as if it had ended by itself
type control struct {
	front *front
}

// serveControl listens on a free port of the loopback address; it gives the base URL.
func serveControl(f *front) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	c := &control{front: f}
	mux := http.NewServeMux()
	mux.HandleFunc("/calls", c.calls)
	mux.HandleFunc("/rules", c.rules)
	mux.HandleFunc("/rules/", c.rules)
	mux.HandleFunc("/latency", c.latency)
	mux.HandleFunc("/sessions", c.sessions)
	mux.HandleFunc("/migrate/", c.migrate)
	mux.HandleFunc("/end/", c.end)
	go func() { log.Print(http.Serve(listener, mux)) }()
	return "http://" + listener.Addr().String(), nil
}

// reply answers with JSON.
func reply(w http.ResponseWriter, value interface{}) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// refuse answers that a request makes no sense.
func refuse(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusBadRequest)
}

func otherMethod(w http.ResponseWriter, r *http.Request) {
	refuse(w, fmt.Errorf("%s is not for %s", r.Method, r.URL.Path))
}

func (c *control) calls(w http.ResponseWriter, r *http.Request) {
	f := c.front
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r.Method {
	case http.MethodGet:
		reply(w, f.calls)
	case http.MethodDelete:
		f.calls = make(map[string]int)
	default:
		otherMethod(w, r)
	}
}

func (c *control) rules(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		reply(w, book.list())
	case http.MethodPost:
		var added rule
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&added); err != nil {
			refuse(w, err)
			return
		}
		id, err := book.add(added)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, map[string]int{"id": id})
	case http.MethodDelete:
		id := 0
		if name := strings.TrimPrefix(r.URL.Path, "/rules/"); name != r.URL.Path && name != "" {
			number, err := strconv.Atoi(name)
			if err != nil {
				refuse(w, err)
				return
			}
			id = number
		}
		book.remove(id)
	default:
		otherMethod(w, r)
	}
}

func (c *control) latency(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Milliseconds float64 `json:"ms"`
	}
	if r.Method != http.MethodPut {
		otherMethod(w, r)
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		refuse(w, err)
		return
	}
	c.front.mu.Lock()
	c.front.latency = time.Duration(wanted.Milliseconds * float64(time.Millisecond))
	c.front.mu.Unlock()
}

func (c *control) sessions(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodDelete {
		otherMethod(w, r)
		return
	}
	c.front.mu.Lock()
	var keys []string
	for key := range c.front.sessions {
		keys = append(keys, key)
	}
	c.front.mu.Unlock()
	for _, key := range keys {
		c.front.expire(key)
	}
}

func (c *control) migrate(w http.ResponseWriter, r *http.Request) {
	var how migration
	if r.Method != http.MethodPost {
		otherMethod(w, r)
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&how); err != nil {
		refuse(w, err)
		return
	}
	if err := migrateNamed(strings.TrimPrefix(r.URL.Path, "/migrate/"), how); err != nil {
		refuse(w, err)
	}
}

func (c *control) end(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		otherMethod(w, r)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/end/")
	m := machineNamed(name)
	if m == nil {
		refuse(w, fmt.Errorf("there is no machine %q", name))
		return
	}
	m.operation.Lock()
	g := m.guest
	m.operation.Unlock()
	if g == nil {
		refuse(w, fmt.Errorf("%q has no guest", name))
		return
	}
	_ = g.command.Process.Kill()
	<-g.done
}
