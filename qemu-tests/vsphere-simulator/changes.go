package main

import (
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// changes says which objects changed since when. Every waiting collector asks it what to look at again.
type changes struct {
	mu sync.Mutex
	// Counts up with every change.
	generation uint64
	// The generation of each object's last change.
	latest map[types.ManagedObjectReference]uint64
	// The generation of the last change to what holds or lists objects.
	structure uint64
	// Closed with the next change.
	next chan struct{}
}

// changed is the one log of changes there is.
var changed = &changes{
	latest: make(map[types.ManagedObjectReference]uint64),
	next:   make(chan struct{}),
}

// making is held by who lets the simulator change objects, and shared by who reads many: the simulator
// puts a new virtual machine into the inventory before it is one, and lists are changed where they lie.
var making sync.RWMutex

// leaf tells whether no other object of interest is reached through one of that type. A new task is
// reached through the task manager, which changes with it.
func leaf(kind string) bool {
	switch kind {
	case "Task", "TaskManager", "EventManager", "EventHistoryCollector":
		return true
	}
	return false
}

func (c *changes) note(reference types.ManagedObjectReference, structure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	c.latest[reference] = c.generation
	if structure {
		c.structure = c.generation
	}
	close(c.next)
	c.next = make(chan struct{})
}

// touch says that an object changed in a way that the registry was not told.
func (c *changes) touch(reference types.ManagedObjectReference) {
	c.note(reference, reference.Type != "VirtualMachine" && !leaf(reference.Type))
}

// now is the generation, and what is closed when there is a newer one.
func (c *changes) now() (uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation, c.next
}

// concern tells whether a change after a generation is to what holds objects or to one of these.
func (c *changes) concern(since uint64, objects map[types.ManagedObjectReference]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.structure > since {
		return true
	}
	for reference := range objects {
		if c.latest[reference] > since {
			return true
		}
	}
	return false
}

// untouched tells whether an object is as it was at a generation. Only of machines and tasks is every
// change told of; others may change with another object.
func (c *changes) untouched(object types.ManagedObjectReference, since uint64) bool {
	if object.Type != "VirtualMachine" && object.Type != "Task" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.latest[object] <= since
}

// changeHandler is how the registry tells of changes.
type changeHandler struct{ changes *changes }

func (h *changeHandler) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Changes", Value: "changes"}
}

func (h *changeHandler) PutObject(object mo.Reference) {
	reference := object.Reference()
	if task, ok := object.(*simulator.Task); ok {
		correctTask(task)
	}
	h.changes.note(reference, !leaf(reference.Type))
}

func (h *changeHandler) UpdateObject(object mo.Reference, _ []types.PropertyChange) {
	h.changes.touch(object.Reference())
}

func (h *changeHandler) RemoveObject(reference types.ManagedObjectReference) {
	h.changes.note(reference, !leaf(reference.Type))
}

// correctTask makes what the simulator writes into a new task what the API's types allow: its entity is
// one, and its name is a method's.
func correctTask(task *simulator.Task) {
	if reference := task.Info.Entity; reference != nil {
		if entity, ok := registry().Get(*reference).(mo.Entity); ok {
			task.Info.EntityName = entity.Entity().Name
		} else {
			task.Info.Entity, task.Info.EntityName = nil, ""
		}
	}
	if name := task.Info.Name; name != "" && !strings.HasSuffix(name, "_Task") {
		name = strings.Replace(name, "Vm", "VM", 1)
		switch name {
		case "PowerOn", "PowerOff", "Suspend", "Reset":
			name += "VM"
		}
		task.Info.Name = name + "_Task"
	}
}
