package main

import (
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// settle is how long changes gather before they are reported together.
const settle = 5 * time.Millisecond

// collector is the PropertyCollector. The simulator's own looks for changes four times a second, knows
// one version, and says nothing of what its calls change without telling the registry; this one keeps
// what it last said and reports the difference, at once.
//
// A version is good for a wait until one two versions newer was given out, so that a client that lost an
// answer can ask again. Others end in InvalidCollectorVersion.
type collector struct {
	simulator.PropertyCollector

	mu     sync.Mutex
	serial int
	states map[string]*state
	cancel chan struct{}
}

// Reference does not copy the collector, as the simulator's own does while others change it.
func (c *collector) Reference() types.ManagedObjectReference { return c.Self }

// state is what a client knows when it has a version.
type state struct {
	generation uint64
	// Filter, object, property: the property's value as XML.
	known map[types.ManagedObjectReference]map[types.ManagedObjectReference]map[string]string
	// All objects in it, and where the filters begin.
	objects map[types.ManagedObjectReference]bool
	// What a client is told next, if it is less than all there is to tell.
	truncated bool
}

// installCollector makes it the registry's; each session then has one of its own.
func installCollector() {
	c := &collector{}
	c.Self = *propertyCollector()
	registry().Put(c)
	registry().AddHandler(&changeHandler{changed})
}

// propertyCollector is the reference of the collector that each session has from the beginning.
func propertyCollector() *types.ManagedObjectReference {
	content := registry().Get(types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"})
	return &content.(*simulator.ServiceInstance).Content.PropertyCollector
}

func (c *collector) CreatePropertyCollector(ctx *simulator.Context, _ *types.CreatePropertyCollector) soap.HasFault {
	other := &collector{}
	other.Self = types.ManagedObjectReference{
		Type:  "PropertyCollector",
		Value: fmt.Sprintf("session[%s]%s", ctx.Session.Key, uuid.New()),
	}
	return &methods.CreatePropertyCollectorBody{
		Res: &types.CreatePropertyCollectorResponse{Returnval: ctx.Session.Put(other).Reference()},
	}
}

func (c *collector) CreateFilter(ctx *simulator.Context, request *types.CreateFilter) soap.HasFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, spec := range request.Spec.ObjectSet {
		if ctx.Session.Get(spec.Obj) == nil && !reportsMissing(request.Spec) {
			return &methods.CreateFilterBody{Fault_: simulator.Fault(
				"The object has already been deleted or has not been completely created",
				&types.ManagedObjectNotFound{Obj: spec.Obj})}
		}
	}
	result := c.PropertyCollector.CreateFilter(ctx, request)
	changed.touch(c.Self)
	return result
}

func (c *collector) RetrievePropertiesEx(ctx *simulator.Context, request *types.RetrievePropertiesEx) soap.HasFault {
	making.RLock()
	defer making.RUnlock()
	return c.PropertyCollector.RetrievePropertiesEx(ctx, request)
}

func (c *collector) RetrieveProperties(ctx *simulator.Context, request *types.RetrieveProperties) soap.HasFault {
	making.RLock()
	defer making.RUnlock()
	return c.PropertyCollector.RetrieveProperties(ctx, request)
}

func (c *collector) DestroyPropertyCollector(ctx *simulator.Context, request *types.DestroyPropertyCollector) soap.HasFault {
	c.CancelWaitForUpdates(nil)
	return c.PropertyCollector.DestroyPropertyCollector(ctx, request)
}

func (c *collector) CancelWaitForUpdates(*types.CancelWaitForUpdates) soap.HasFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		close(c.cancel)
		c.cancel = nil
	}
	return &methods.CancelWaitForUpdatesBody{Res: new(types.CancelWaitForUpdatesResponse)}
}

func (c *collector) WaitForUpdates(ctx *simulator.Context, request *types.WaitForUpdates) soap.HasFault {
	answer := c.WaitForUpdatesEx(ctx, &types.WaitForUpdatesEx{This: request.This, Version: request.Version})
	if fault := answer.Fault(); fault != nil {
		return &methods.WaitForUpdatesBody{Fault_: fault}
	}
	return &methods.WaitForUpdatesBody{Res: &types.WaitForUpdatesResponse{
		Returnval: *answer.(*methods.WaitForUpdatesExBody).Res.Returnval,
	}}
}

func (c *collector) CheckForUpdates(ctx *simulator.Context, request *types.CheckForUpdates) soap.HasFault {
	none := int32(0)
	answer := c.WaitForUpdatesEx(ctx, &types.WaitForUpdatesEx{
		This: request.This, Version: request.Version, Options: &types.WaitOptions{MaxWaitSeconds: &none},
	})
	if fault := answer.Fault(); fault != nil {
		return &methods.CheckForUpdatesBody{Fault_: fault}
	}
	return &methods.CheckForUpdatesBody{Res: &types.CheckForUpdatesResponse{
		Returnval: answer.(*methods.WaitForUpdatesExBody).Res.Returnval,
	}}
}

func (c *collector) WaitForUpdatesEx(ctx *simulator.Context, request *types.WaitForUpdatesEx) soap.HasFault {
	fail := func(message string, fault types.BaseMethodFault) soap.HasFault {
		return &methods.WaitForUpdatesExBody{Fault_: simulator.Fault(message, fault)}
	}
	var deadline <-chan time.Time
	most := 0
	if o := request.Options; o != nil {
		if o.MaxWaitSeconds != nil {
			timer := time.NewTimer(time.Duration(*o.MaxWaitSeconds) * time.Second)
			defer timer.Stop()
			deadline = timer.C
		}
		most = int(o.MaxObjectUpdates)
	}

	c.mu.Lock()
	base := &state{}
	if request.Version == "" {
		c.states = make(map[string]*state)
	} else if base = c.states[request.Version]; base == nil {
		c.mu.Unlock()
		return fail("", &types.InvalidCollectorVersion{})
	} else {
		own := *base
		base = &own
	}
	if c.cancel != nil {
		close(c.cancel)
	}
	cancel := make(chan struct{})
	c.cancel = cancel
	c.mu.Unlock()

	for first := true; ; first = false {
		generation, next := changed.now()
		if !alive(ctx) {
			return fail("", &types.NotAuthenticated{NoPermission: types.NoPermission{
				Object: c.Self, PrivilegeId: "System.View",
			}})
		}
		if base.truncated || first && request.Version == "" || changed.concern(base.generation, base.objects) {
			if !first {
				time.Sleep(settle)
				generation, next = changed.now()
			}
			// Not before the generation: what is newer than that is looked at again.
			set, reached, fault := c.difference(ctx, base, most)
			if fault != nil {
				return fail("", fault)
			}
			reached.generation = generation
			if reached.truncated {
				// What was left out is looked at again.
				reached.generation = base.generation
			}
			// The first answer comes even if it is empty, as long as there is a filter.
			if len(set.FilterSet) > 0 || request.Version == "" && len(reached.known) > 0 {
				misreport(set)
				return c.give(request.Version, set, reached)
			}
			// Nothing to tell: from here on only what is newer matters.
			base.generation, base.objects = generation, reached.objects
		}
		select {
		case <-next:
		case <-cancel:
			return fail("", &types.RequestCanceled{})
		case <-deadline:
			return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{}}
		case <-ctx.Done():
			return fail("", &types.RequestCanceled{})
		}
	}
}

// give names a version for what a client knows with this answer.
func (c *collector) give(asked string, set *types.UpdateSet, reached *state) soap.HasFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	for version := range c.states {
		if version != asked {
			delete(c.states, version)
		}
	}
	c.serial++
	set.Version = fmt.Sprint(c.serial)
	c.states[set.Version] = reached
	return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{Returnval: set}}
}

// difference is what a client does not know yet: at most so many objects of it, if not 0.
func (c *collector) difference(
	ctx *simulator.Context, base *state, most int,
) (*types.UpdateSet, *state, types.BaseMethodFault) {
	making.RLock()
	defer making.RUnlock()
	c.mu.Lock()
	filters := append([]types.ManagedObjectReference(nil), c.Filter...)
	c.mu.Unlock()
	set := &types.UpdateSet{}
	reached := &state{
		known:   make(map[types.ManagedObjectReference]map[types.ManagedObjectReference]map[string]string),
		objects: map[types.ManagedObjectReference]bool{c.Self: true},
	}
	room := most
	take := func() bool {
		if most == 0 {
			return true
		}
		if room == 0 {
			reached.truncated = true
			return false
		}
		room--
		return true
	}
	for _, reference := range filters {
		filter, ok := ctx.Session.Get(reference).(*simulator.PropertyFilter)
		if !ok {
			continue
		}
		for _, object := range filter.Spec.ObjectSet {
			reached.objects[object.Obj] = true
		}
		yes := true
		spec := filter.Spec
		spec.ReportMissingObjectsInResults = &yes
		answer := c.PropertyCollector.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{
			This: c.Self, SpecSet: []types.PropertyFilterSpec{spec},
		}).(*methods.RetrievePropertiesExBody)
		if answer.Fault_ != nil {
			fault, _ := answer.Fault_.VimFault().(types.BaseMethodFault)
			return nil, nil, fault
		}
		update := types.PropertyFilterUpdate{Filter: reference}
		before := base.known[reference]
		after := make(map[types.ManagedObjectReference]map[string]string)
		present := make(map[types.ManagedObjectReference]bool)
		for _, content := range answer.Res.Returnval.Objects {
			present[content.Obj] = true
			reached.objects[content.Obj] = true
			known, entered := before[content.Obj]
			if entered && changed.untouched(content.Obj, base.generation) {
				after[content.Obj] = known
				continue
			}
			values, changes := compare(known, content.PropSet)
			if entered && len(changes) == 0 || !take() {
				if entered {
					after[content.Obj] = known
				}
				continue
			}
			kind := types.ObjectUpdateKindEnter
			if entered {
				kind = types.ObjectUpdateKindModify
			}
			after[content.Obj] = values
			update.ObjectSet = append(update.ObjectSet, types.ObjectUpdate{
				Kind: kind, Obj: content.Obj, ChangeSet: changes, MissingSet: content.MissingSet,
			})
		}
		for _, object := range sorted(before) {
			if present[object] {
				continue
			}
			if !take() {
				after[object] = before[object]
				continue
			}
			update.ObjectSet = append(update.ObjectSet, types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: object})
		}
		reached.known[reference] = after
		if len(update.ObjectSet) > 0 {
			set.FilterSet = append(set.FilterSet, update)
		}
	}
	if reached.truncated {
		set.Truncated = &reached.truncated
	}
	return set, reached, nil
}

// compare says which properties are not as they are known to be.
func compare(known map[string]string, found []types.DynamicProperty) (map[string]string, []types.PropertyChange) {
	values := make(map[string]string, len(found))
	var changes []types.PropertyChange
	for _, property := range found {
		data, err := xml.Marshal(property.Val)
		if err != nil {
			data = []byte(fmt.Sprintf("%#v", property.Val))
		}
		values[property.Name] = string(data)
		if value, ok := known[property.Name]; ok && value == string(data) {
			continue
		}
		changes = append(changes, types.PropertyChange{
			Name: property.Name, Op: types.PropertyChangeOpAssign, Val: property.Val,
		})
	}
	var gone []string
	for name := range known {
		if _, ok := values[name]; !ok {
			gone = append(gone, name)
		}
	}
	sort.Strings(gone)
	for _, name := range gone {
		changes = append(changes, types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign})
	}
	return values, changes
}

func reportsMissing(spec types.PropertyFilterSpec) bool {
	return spec.ReportMissingObjectsInResults != nil && *spec.ReportMissingObjectsInResults
}

func sorted(objects map[types.ManagedObjectReference]map[string]string) []types.ManagedObjectReference {
	var list []types.ManagedObjectReference
	for object := range objects {
		list = append(list, object)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].String() < list[j].String() })
	return list
}
