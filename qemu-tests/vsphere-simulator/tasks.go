package main

import (
	"fmt"
	"log"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// work is what a task does.
type work func(*simulator.Task) (types.AnyType, types.BaseMethodFault)

// startTask makes a task of an object and lets it run: the simulator's own are done before the call
// that makes them returns. The method is the API's: `PowerOnVM_Task`.
func startTask(object types.ManagedObjectReference, method, message string, do work) types.ManagedObjectReference {
	task := simulator.CreateTask(object, taskName(method), nil)
	registry().WithLock(task, func() { task.Info.Name = method })
	go func() {
		update(task, types.PropertyChange{Name: "info.startTime", Val: time.Now()},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning})
		result, fault := survive(method, task, do)
		done := []types.PropertyChange{
			{Name: "info.completeTime", Val: time.Now()},
			{Name: "info.state", Val: types.TaskInfoStateSuccess},
			{Name: "info.result", Val: result},
		}
		if fault != nil {
			text := message
			if text == "" {
				text = faultMessage(fault)
			}
			done[1].Val = types.TaskInfoStateError
			done[2] = types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{
				Fault: fault, LocalizedMessage: text,
			}}
		}
		update(task, done...)
	}()
	return task.Self
}

// survive does a task's work, and fails it where the simulator's code falls over.
func survive(method string, task *simulator.Task, do work) (result types.AnyType, fault types.BaseMethodFault) {
	defer func() {
		if reason := recover(); reason != nil {
			log.Printf("%s: %v\n%s", method, reason, debug.Stack())
			result, fault = nil, &types.SystemError{Reason: fmt.Sprint(reason)}
		}
	}()
	return do(task)
}

// update changes an object under its lock.
func update(object mo.Reference, properties ...types.PropertyChange) {
	registry().WithLock(object, func() { registry().Update(object, properties) })
}

// waitTask waits until a task is done.
func waitTask(reference types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	for {
		_, next := changed.now()
		task, ok := registry().Get(reference).(*simulator.Task)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: reference}
		}
		var info types.TaskInfo
		registry().WithLock(task, func() { info = task.Info })
		switch info.State {
		case types.TaskInfoStateSuccess:
			return info.Result, nil
		case types.TaskInfoStateError:
			if info.Error == nil {
				return nil, &types.SystemError{Reason: "a failed task without a fault"}
			}
			return nil, info.Error.Fault
		}
		<-next
	}
}

// taskManager is the one that has the recent tasks.
func taskManager() *simulator.TaskManager {
	content := registry().Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
	manager, _ := registry().Get(*content.TaskManager).(*simulator.TaskManager)
	return manager
}

// dropTask takes away a task that nobody asked for.
func dropTask(reference types.ManagedObjectReference) {
	if manager := taskManager(); manager != nil {
		manager.Lock()
		var recent []types.ManagedObjectReference
		for _, other := range manager.RecentTask {
			if other != reference {
				recent = append(recent, other)
			}
		}
		registry().Update(manager, []types.PropertyChange{{Name: "recentTask", Val: recent}})
		manager.Unlock()
	}
	registry().Remove(reference)
}

// lastTask is the newest task of an object; the object itself, if it has none.
func lastTask(of types.ManagedObjectReference) types.ManagedObjectReference {
	last := of
	if manager := taskManager(); manager != nil {
		manager.Lock()
		recent := append([]types.ManagedObjectReference(nil), manager.RecentTask...)
		manager.Unlock()
		for _, reference := range recent {
			if task, ok := registry().Get(reference).(*simulator.Task); ok && task.Info.Entity != nil && *task.Info.Entity == of {
				last = reference
			}
		}
	}
	return last
}

// taskNames are the names of tasks that are not the method's.
var taskNames = map[string]string{
	"CreateVM": "createVm", "PowerOnVM": "powerOn", "PowerOffVM": "powerOff", "SuspendVM": "suspend",
	"ResetVM": "reset", "ReconfigVM": "reconfigVm", "CloneVM": "cloneVm", "RegisterVM": "registerVm",
}

// taskName is the name of the task that a method makes.
func taskName(method string) string {
	name := strings.TrimSuffix(method, "_Task")
	if known, ok := taskNames[name]; ok {
		return known
	}
	return strings.ToLower(name[:1]) + name[1:]
}

// taskResult finds the task in the answer to a call.
var taskResult = regexp.MustCompile(`<returnval[^>]*type="Task"[^>]*>([^<]+)</returnval>`)

// retask puts another task into an answer: one that is slower than the call's, or fails.
func retask(c call, result *answer, found map[string]rule) {
	body := result.body.String()
	place := taskResult.FindStringSubmatchIndex(body)
	if place == nil {
		return
	}
	inner := types.ManagedObjectReference{Type: "Task", Value: body[place[2]:place[3]]}
	failing, fails := found["task-fault-after"]
	outer := startTask(c.this, c.method, failing.Message, func(task *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		value, fault := waitTask(inner)
		dropTask(inner)
		linger(task, found["slow-task"])
		if fails {
			fault, _ = faultNamed(failing.Fault, c.this)
		}
		return value, fault
	})
	result.body.Reset()
	result.body.WriteString(body[:place[2]] + outer.Value + body[place[3]:])
}

// linger lets a task's time pass, and its progress be seen.
func linger(task *simulator.Task, slow rule) {
	const steps = 4
	for step := 1; step <= steps && slow.Milliseconds > 0; step++ {
		time.Sleep(time.Duration(slow.Milliseconds) * time.Millisecond / steps)
		if step < steps {
			update(task, types.PropertyChange{Name: "info.progress", Val: int32(100 * step / steps)})
		}
	}
}
