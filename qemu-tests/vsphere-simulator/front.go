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

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// front stands before the simulator: every request comes through it.
type front struct {
	inner     http.Handler
	versions  []string
	latency   time.Duration
	datastore string

	mu       sync.Mutex
	sessions map[string]string
	calls    map[string]int
}

func newFront(inner http.Handler, o options) *front {
	return &front{
		inner:     inner,
		versions:  versionsUpTo(o.apiVersion),
		latency:   o.latency,
		datastore: o.datastore,
		sessions:  make(map[string]string),
		calls:     make(map[string]int),
	}
}

// count counts a call, or a request that is none by its HTTP method and the path's first part.
func (f *front) count(name string) {
	f.mu.Lock()
	f.calls[name]++
	f.mu.Unlock()
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
		time.Sleep(f.latency)
		serveVersions(w, f.versions)
	case r.URL.Path == "/sdk" && r.Method == http.MethodPost:
		f.serveCall(w, r)
	case strings.HasPrefix(r.URL.Path, "/folder"):
		f.count(r.Method + " /folder")
		time.Sleep(f.latency)
		f.serveFolder(w, r)
	default:
		f.count(r.Method + " " + path.Join("/", strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 2)[0]))
		time.Sleep(f.latency)
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
	time.Sleep(f.latency)
	if complaint := checkAction(r.Header.Get("SOAPAction"), f.versions); complaint != "" {
		writeFault(w, complaint, &types.InvalidRequest{})
		return
	}
	result := f.perform(r, c, body)
	result.send(w)
}

// perform lets the simulator act on a call, and keeps what it answers.
func (f *front) perform(r *http.Request, c call, body []byte) (result *answer) {
	result = newAnswer()
	defer func() {
		if reason := recover(); reason != nil {
			log.Printf("%s of %s: %v\n%s", c.method, c.this, reason, debug.Stack())
			result = newAnswer()
			writeFault(result, fmt.Sprint(reason), &types.SystemError{Reason: fmt.Sprint(reason)})
		}
	}()
	request := r.Clone(r.Context())
	request.Body = io.NopCloser(bytes.NewReader(body))
	request.ContentLength = int64(len(body))
	f.inner.ServeHTTP(result, request)
	f.follow(r, c, result)
	return result
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
