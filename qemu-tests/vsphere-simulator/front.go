package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// front stands before the simulator: every request comes through it.
type front struct {
	inner     http.Handler
	versions  []string
	latency   time.Duration
	datastore string
	trace     bool

	mu       sync.Mutex
	sessions map[string]string
	calls    map[string]int
}

func newFront(inner http.Handler, o options) *front {
	f := &front{
		inner:     inner,
		versions:  versionsUpTo(o.apiVersion),
		latency:   o.latency,
		datastore: o.datastore,
		trace:     o.trace,
		sessions:  make(map[string]string),
		calls:     make(map[string]int),
	}
	alive = func(ctx *simulator.Context) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, ok := f.sessions[ctx.Session.Key]
		return ok
	}
	return f
}

// alive tells whether a call's session is still there: a wait for updates can outlast it.
var alive func(*simulator.Context) bool

// expire ends a session.
func (f *front) expire(key string) {
	f.mu.Lock()
	delete(f.sessions, key)
	f.mu.Unlock()
	registry().SessionManager().TerminateSession(internal(), &types.TerminateSession{SessionId: []string{key}})
	changed.touch(registry().SessionManager().Self)
}

// wait lets pass the time that each request takes longer.
func (f *front) wait() {
	f.mu.Lock()
	latency := f.latency
	f.mu.Unlock()
	time.Sleep(latency)
}

// count counts a call, or a request that is none by its HTTP method and the path's first part, and
// lets its latency pass.
func (f *front) count(name string) {
	f.mu.Lock()
	f.calls[name]++
	f.mu.Unlock()
	f.wait()
}

// session is the key of the session a request belongs to, "" if it belongs to none.
func (f *front) session(r *http.Request) string {
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.sessions[cookie.Value]; !ok {
		return ""
	}
	return cookie.Value
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/sdk/vimServiceVersions.xml":
		f.count("GET vimServiceVersions.xml")
		serveVersions(w, f.versions)
	case r.URL.Path == "/sdk" && r.Method == http.MethodPost:
		f.serveCall(w, r)
	case strings.HasPrefix(r.URL.Path, "/folder"):
		f.count(r.Method + " /folder")
		f.serveFolder(w, r)
	case strings.HasPrefix(r.URL.Path, "/nfc/"):
		f.count(r.Method + " /nfc")
		if !serveUpload(w, r) {
			f.inner.ServeHTTP(w, r)
		}
	default:
		f.count(r.Method + " " + path.Join("/", strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 2)[0]))
		f.inner.ServeHTTP(w, r)
	}
}

// serveFolder refuses what a real server does and the simulator does not: requests without a session,
// and a file in a directory that is not there.
func (f *front) serveFolder(w http.ResponseWriter, r *http.Request) {
	if f.session(r) == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "401 Unauthorized", http.StatusUnauthorized)
		return
	}
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		file := path.Clean("/" + strings.TrimPrefix(r.URL.Path, "/folder"))
		if _, err := os.Stat(path.Join(f.datastore, path.Dir(file))); err != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, "404 Not Found", http.StatusNotFound)
			return
		}
	}
	f.inner.ServeHTTP(w, r)
}

func (f *front) serveCall(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, err := parseCall(body)
	if err != nil {
		f.count("malformed")
		writeFault(w, err.Error(), &types.InvalidRequest{})
		return
	}
	f.count(c.method)
	if complaint := checkAction(r.Header.Get("SOAPAction"), f.versions); complaint != "" {
		writeFault(w, complaint, &types.InvalidRequest{})
		return
	}
	found := book.match(c.method, c.this.Value, false)
	time.Sleep(time.Duration(found["delay"].Milliseconds) * time.Millisecond)
	if _, ok := found["expire-session"]; ok {
		f.expire(f.session(r))
	}
	if _, ok := found["drop-before"]; ok {
		panic(http.ErrAbortHandler)
	}
	if refused, ok := found["status"]; ok {
		http.Error(w, http.StatusText(refused.Status), refused.Status)
		return
	}
	if refused, ok := found["fault"]; ok && f.session(r) != "" {
		fault, _ := faultNamed(refused.Fault, c.this)
		message := refused.Message
		if message == "" {
			message = faultMessage(fault)
		}
		writeFault(w, message, fault)
		return
	}
	if failing, ok := found["task-fault"]; ok && f.session(r) != "" {
		f.failTask(w, c, failing, found["slow-task"])
		return
	}
	began := time.Now()
	result := f.perform(r, c, body)
	if f.trace {
		log.Printf("%s %s of %s: %d in %s\n%s", r.RemoteAddr, c.method, c.this.Value, result.status, time.Since(began), brief(result))
	}
	_, slow := found["slow-task"]
	_, fails := found["task-fault-after"]
	if slow || fails {
		retask(c, result, found)
	}
	if _, ok := found["drop-after"]; ok {
		panic(http.ErrAbortHandler)
	}
	result.send(w)
}

// brief is the beginning of an answer's body.
func brief(result *answer) string {
	const most = 2000
	body := result.body.String()
	if at := strings.Index(body, "Body>"); at >= 0 {
		body = body[at+len("Body>"):]
	}
	if len(body) > most {
		body = body[:most]
	}
	return body
}

// failTask answers with a task that does nothing and fails.
func (f *front) failTask(w http.ResponseWriter, c call, failing, slow rule) {
	fault, _ := faultNamed(failing.Fault, c.this)
	task := startTask(c.this, c.method, failing.Message, func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		linger(task, slow)
		return nil, fault
	})
	writeAnswer(w, c.method, `<returnval type="Task">`+task.Value+"</returnval>")
}

// perform lets the simulator act on a call, and keeps what it answers.
func (f *front) perform(r *http.Request, c call, body []byte) (result *answer) {
	result = newAnswer()
	defer func() {
		if reason := recover(); reason != nil {
			result = newAnswer()
			// The simulator's way with a property that is not set.
			if c.method == "Fetch" && strings.Contains(fmt.Sprint(reason), "index out of range [0]") {
				writeAnswer(result, c.method, "")
				return
			}
			log.Printf("%s of %s: %v\n%s", c.method, c.this, reason, debug.Stack())
			writeFault(result, fmt.Sprint(reason), &types.SystemError{Reason: fmt.Sprint(reason)})
		}
	}()
	if c.method == "FindByUuid" && f.session(r) != "" {
		writeAnswer(result, c.method, findByUUID(body))
		return
	}
	if kind := override(c); kind != "" {
		body = c.redirect(body, kind)
	}
	request := r.Clone(r.Context())
	request.Body = io.NopCloser(bytes.NewReader(body))
	request.ContentLength = int64(len(body))
	if c.method == "DestroyPropertyFilter" {
		making.Lock()
		defer making.Unlock()
	}
	f.inner.ServeHTTP(result, request)
	f.follow(r, c, result)
	if result.status == http.StatusOK && (c.method == "HttpNfcLeaseComplete" || c.method == "HttpNfcLeaseAbort") {
		leaseEnded(c.this.Value, c.method == "HttpNfcLeaseAbort")
	}
	// Not all that the simulator's methods change do they tell the registry of.
	if mayChange(c.method) {
		changed.touch(c.this)
	}
	return result
}

// changesNothing are the beginnings of the names of methods that only ask.
var changesNothing = []string{
	"Retrieve", "WaitForUpdates", "CheckForUpdates", "Query", "Find", "Current", "Read", "Create", "Login",
	"Destroy", "Cancel", "Fetch", "Session", "Continue",
}

// mayChange tells whether a method may change the object it is asked of unbeknown to the registry.
func mayChange(method string) bool {
	for _, beginning := range changesNothing {
		if strings.HasPrefix(method, beginning) {
			return false
		}
	}
	return true
}

// follow keeps count of the sessions there are.
func (f *front) follow(r *http.Request, c call, result *answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := http.Response{Header: result.header}
	for _, cookie := range response.Cookies() {
		if cookie.Name == soap.SessionCookieName {
			f.sessions[cookie.Value] = r.RemoteAddr
		}
	}
	if c.method == "Logout" && result.status == http.StatusOK {
		if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
			delete(f.sessions, cookie.Value)
		}
	}
}
