package main

import (
	"fmt"
	"path"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// rule is something that goes wrong on purpose. Method may have wildcards (`*_Task`).
type rule struct {
	ID int `json:"id"`
	// What it applies to: a method, and an object's id (`vm-12`) if it is not empty.
	Method string `json:"method"`
	Object string `json:"object,omitempty"`
	// What goes wrong; see [kinds].
	Do string `json:"do"`
	// The first calls it lets pass, and how many it then applies to; 0 is all.
	Skip  int `json:"skip"`
	Times int `json:"times"`
	// Arguments of what goes wrong.
	Fault        string `json:"fault,omitempty"`
	Message      string `json:"message,omitempty"`
	Milliseconds int    `json:"ms,omitempty"`
	Status       int    `json:"status,omitempty"`
	// How often it applied.
	Hits int `json:"hits"`
}

// kinds is what can go wrong, and what each needs: "fault", "ms", "status" or nothing.
var kinds = map[string]string{
	// The call takes so much longer.
	"delay": "ms",
	// The session is gone when the call arrives.
	"expire-session": "",
	// The connection ends: before the server acted, or after it did.
	"drop-before": "",
	"drop-after":  "",
	// The call is refused: by HTTP status or by a fault. Nothing is done.
	"status": "status",
	"fault":  "fault",
	// The call gives a task that fails: without anything being done, or after it was.
	"task-fault":       "fault",
	"task-fault-after": "fault",
	// The call's task is done so much later, and tells its progress.
	"slow-task": "ms",
	// Updates of properties come in another order, or twice.
	"reorder-updates":   "",
	"duplicate-updates": "",
}

// ruleBook has the rules in force.
type ruleBook struct {
	mu    sync.Mutex
	next  int
	rules []*rule
}

// book is the only one.
var book = &ruleBook{}

func (b *ruleBook) add(r rule) (int, error) {
	needs, ok := kinds[r.Do]
	if !ok {
		return 0, fmt.Errorf("do %q: there is no such fault", r.Do)
	}
	if _, err := path.Match(r.Method, ""); err != nil || r.Method == "" {
		return 0, fmt.Errorf("method %q: is a method's name or a pattern", r.Method)
	}
	switch {
	case needs == "fault":
		if _, err := faultNamed(r.Fault, types.ManagedObjectReference{}); err != nil {
			return 0, err
		}
	case needs == "ms" && r.Milliseconds <= 0:
		return 0, fmt.Errorf("%s: ms is needed", r.Do)
	case needs == "status" && (r.Status < 400 || r.Status > 599):
		return 0, fmt.Errorf("%s: status is 400 to 599", r.Do)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	r.ID, r.Hits = b.next, 0
	b.rules = append(b.rules, &r)
	return r.ID, nil
}

// remove removes one rule, or all for 0.
func (b *ruleBook) remove(id int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var kept []*rule
	for _, r := range b.rules {
		if id != 0 && r.ID != id {
			kept = append(kept, r)
		}
	}
	b.rules = kept
}

func (b *ruleBook) list() []rule {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []rule{}
	for _, r := range b.rules {
		list = append(list, *r)
	}
	return list
}

// match uses up what applies to a call, by what goes wrong. Rules on updates are no rules on calls:
// they apply to answers that have updates.
func (b *ruleBook) match(method, object string, updates bool) map[string]rule {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := make(map[string]rule)
	for _, r := range b.rules {
		if matched, _ := path.Match(r.Method, method); !matched || r.Object != "" && r.Object != object {
			continue
		}
		if _, have := found[r.Do]; have || updates != (r.Do == "reorder-updates" || r.Do == "duplicate-updates") {
			continue
		}
		if r.Times > 0 && r.Hits >= r.Times {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		r.Hits++
		found[r.Do] = *r
	}
	return found
}

// misreport puts updates in another order, or in twice, where a rule says so.
func misreport(set *types.UpdateSet) {
	found := book.match("WaitForUpdatesEx", "", true)
	_, reorder := found["reorder-updates"]
	_, duplicate := found["duplicate-updates"]
	for i := range set.FilterSet {
		objects := set.FilterSet[i].ObjectSet
		if reorder {
			for a, z := 0, len(objects)-1; a < z; a, z = a+1, z-1 {
				objects[a], objects[z] = objects[z], objects[a]
			}
			for _, object := range objects {
				changes := object.ChangeSet
				for a, z := 0, len(changes)-1; a < z; a, z = a+1, z-1 {
					changes[a], changes[z] = changes[z], changes[a]
				}
			}
		}
		if duplicate {
			set.FilterSet[i].ObjectSet = append(objects, objects...)
		}
	}
	if reorder {
		for a, z := 0, len(set.FilterSet)-1; a < z; a, z = a+1, z-1 {
			set.FilterSet[a], set.FilterSet[z] = set.FilterSet[z], set.FilterSet[a]
		}
	}
}
