package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"text/template"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// The name of the one datastore.
const datastoreName = "LocalDS_0"

// internal is the session of what the simulator does of itself: what nobody asked for by a call. It has no
// user, as the events of what a guest does have none.
func internal() *simulator.Context {
	return &simulator.Context{
		Context: context.Background(),
		Session: &simulator.Session{
			UserSession: types.UserSession{Key: uuid.New().String()},
			Registry:    simulator.NewRegistry(),
		},
		Map: registry(),
	}
}

// createInventory makes what is there before the first client comes.
func createInventory(o options) (*simulator.Service, error) {
	if err := os.MkdirAll(host.datastore, 0o755); err != nil {
		return nil, err
	}
	model := simulator.VPX()
	if o.kind == "esx" {
		model = simulator.ESX()
	} else {
		model.Host = 0
		model.Portgroup = 2
	}
	model.Machine = 0
	model.Datastore = 0
	model.ServiceContent.About.ApiVersion = o.apiVersion
	model.ServiceContent.About.Version = productVersion(o.apiVersion)
	if err := model.Create(); err != nil {
		return nil, err
	}
	prune()
	correctEvents()
	installCollector()
	installDiskManager()
	return model.Service, shareDatastore(host.datastore)
}

// prune takes out of the model's lists what does not exist, and what is in them twice.
func prune() {
	clean := func(list []types.ManagedObjectReference) []types.ManagedObjectReference {
		var kept []types.ManagedObjectReference
		for _, reference := range list {
			if registry().Get(reference) != nil && simulator.FindReference(kept, reference) == nil {
				kept = append(kept, reference)
			}
		}
		return kept
	}
	for _, entity := range registry().All("") {
		switch e := entity.(type) {
		case *simulator.Datacenter:
			e.Datastore, e.Network = clean(e.Datastore), clean(e.Network)
		case *simulator.HostSystem:
			e.Datastore, e.Network = clean(e.Datastore), clean(e.Network)
		case *mo.ComputeResource:
			e.Datastore, e.Network = clean(e.Datastore), clean(e.Network)
		case *simulator.ClusterComputeResource:
			e.Datastore, e.Network = clean(e.Datastore), clean(e.Network)
		}
	}
}

// correctEvents replaces descriptions of events that are no templates of Go's: the simulator takes them
// for such when one is posted, and falls over.
func correctEvents() {
	events := registry().EventManager()
	described := append([]types.EventDescriptionEventDetail(nil), events.Description.EventInfo...)
	for i, event := range described {
		if _, err := template.New(event.Key).Parse(event.FullFormat); err != nil {
			described[i].FullFormat = event.Description
		}
	}
	events.Description.EventInfo = described
}

// shareDatastore makes a directory the datastore of every host. The simulator's own call would make
// one of the same name for each.
func shareDatastore(directory string) error {
	hosts := registry().All("HostSystem")
	sort.Slice(hosts, func(i, j int) bool { return hosts[i].Entity().Name < hosts[j].Entity().Name })
	var shared *simulator.Datastore
	for _, entity := range hosts {
		host, ok := entity.(*simulator.HostSystem)
		if !ok || host.ConfigManager.DatastoreSystem == nil {
			return fmt.Errorf("%s has no datastore system", entity.Reference())
		}
		system, ok := registry().Get(*host.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
		if !ok {
			return fmt.Errorf("%s is no datastore system", host.ConfigManager.DatastoreSystem)
		}
		if shared == nil {
			answer := system.CreateLocalDatastore(internal(), &types.CreateLocalDatastore{Name: datastoreName, Path: directory})
			if fault := answer.Fault(); fault != nil {
				return fmt.Errorf("%s: %s %T", directory, fault.String, fault.VimFault())
			}
			reference := answer.(*methods.CreateLocalDatastoreBody).Res.Returnval
			shared = registry().Get(reference).(*simulator.Datastore)
			shared.Summary.Type = "VMFS"
			multiple := len(hosts) > 1
			shared.Summary.MultipleHostAccess = &multiple
			continue
		}
		system.Datastore = append(system.Datastore, shared.Self)
		system.Host.Datastore = system.Datastore
		if compute := computeResource(host); compute != nil {
			registry().AddReference(compute, &compute.Datastore, shared.Self)
		}
		mount := shared.Host[0].MountInfo
		shared.Host = append(shared.Host, types.DatastoreHostMount{Key: host.Self, MountInfo: mount})
	}
	if shared == nil {
		return fmt.Errorf("there is no host to mount %s on", directory)
	}
	return nil
}

// computeResource is what a host is part of: a cluster, or a compute resource of its own.
func computeResource(host *simulator.HostSystem) *mo.ComputeResource {
	switch parent := registry().Get(*host.Parent).(type) {
	case *mo.ComputeResource:
		return parent
	case *simulator.ClusterComputeResource:
		return &parent.ComputeResource
	}
	return nil
}
