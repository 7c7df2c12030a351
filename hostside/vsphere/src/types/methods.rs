//! The methods the client calls.

use super::Nothing;
use super::data::*;
use super::macros::methods;
use super::reference::ManagedObject;
use crate::session::Secret;

methods! {
    ServiceInstance.RetrieveServiceContent() -> ServiceContent
        : Safe, [], "finds the server's managers";
    ServiceInstance.CurrentTime() -> std::time::SystemTime
        : Safe, [], "keeps the session alive";
    SessionManager.Login(userName: String, password: Secret, locale: Option<String>) -> UserSession
        : Safe, [], "opens the session";
    SessionManager.Logout() -> Nothing
        : Safe, [], "ends the session";
    PropertyCollector.CreatePropertyCollector() -> ManagedObject
        : Safe, [], "makes the collector that everything is waited for with";
    PropertyCollector.CreateFilter(spec: PropertyFilterSpec, partialUpdates: bool) -> ManagedObject
        : Safe, ["System.Read"], "says what is watched";
    PropertyFilter.DestroyPropertyFilter() -> Nothing
        : Safe, [], "watches something no longer";
    PropertyCollector.WaitForUpdatesEx(version: Option<String>, options: Option<WaitOptions>) -> Option<UpdateSet>
        : Safe, ["System.Read"], "waits for changes of machines, tasks and pools";
    PropertyCollector.RetrievePropertiesEx(specSet: Vec<PropertyFilterSpec>, options: RetrieveOptions) -> Option<RetrieveResult>
        : Safe, ["System.Read"], "reads what is looked at once";
    PropertyCollector.ContinueRetrievePropertiesEx(token: String) -> RetrieveResult
        : Safe, ["System.Read"], "reads the rest of it";
    SearchIndex.FindByInventoryPath(inventoryPath: String) -> Option<ManagedObject>
        : Safe, ["System.View"], "finds datacenter, pool, folder and datastore by path";
    AuthorizationManager.FetchUserPrivilegeOnEntities(entities: Vec<ManagedObject>, userName: String) -> Vec<UserPrivilegeResult>
        : Safe, ["System.View"], "reports missing privileges before anything is made";
    Folder.CreateFolder(name: String) -> ManagedObject
        : Never, ["Folder.Create"], "makes the VCH's folder";
    ResourcePool.CreateResourcePool(name: String, spec: ResourceConfigSpec) -> ManagedObject
        : Never, ["Resource.CreatePool"], "makes the VCH's resource pool";
    ResourcePool.UpdateConfig(name: Option<String>, config: Option<ResourceConfigSpec>) -> Nothing
        : Safe, ["Resource.EditPool"], "changes reservation, limit and shares of the pool";
    Folder.CreateVM_Task(config: VirtualMachineConfigSpec, pool: ManagedObject, host: Option<ManagedObject>) -> ManagedObject
        : Never, [
            "VirtualMachine.Inventory.Create", "VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.AddExistingDisk",
            "VirtualMachine.Config.AdvancedConfig", "Resource.AssignVMToPool", "Datastore.AllocateSpace", "Network.Assign"
        ], "makes a containerVM";
    VirtualMachine.ReconfigVM_Task(spec: VirtualMachineConfigSpec) -> ManagedObject
        : Never, [
            "VirtualMachine.Config.CPUCount", "VirtualMachine.Config.Memory", "VirtualMachine.Config.AddExistingDisk",
            "VirtualMachine.Config.AddNewDisk", "VirtualMachine.Config.RemoveDisk", "VirtualMachine.Config.AdvancedConfig",
            "VirtualMachine.Config.EditDevice", "Network.Assign"
        ], "changes CPUs, memory, disks and metadata; gives a fork its own devices";
    VirtualMachine.InstantClone_Task(spec: VirtualMachineInstantCloneSpec) -> ManagedObject
        : Never, [
            "VirtualMachine.Provisioning.Clone", "VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Interact.PowerOn",
            "Resource.AssignVMToPool", "Datastore.AllocateSpace", "Network.Assign"
        ], "forks a containerVM from a template";
    VirtualMachine.PowerOnVM_Task(host: Option<ManagedObject>) -> ManagedObject
        : Never, ["VirtualMachine.Interact.PowerOn"], "powers a containerVM on, or resumes it";
    VirtualMachine.PowerOffVM_Task() -> ManagedObject
        : Never, ["VirtualMachine.Interact.PowerOff"], "cuts its power";
    VirtualMachine.ShutdownGuest() -> Nothing
        : Safe, ["VirtualMachine.Interact.PowerOff"], "asks the guest to shut down";
    VirtualMachine.SuspendVM_Task() -> ManagedObject
        : Never, ["VirtualMachine.Interact.Suspend"], "suspends it";
    ManagedEntity.Destroy_Task() -> ManagedObject
        : Never, ["VirtualMachine.Inventory.Delete", "Resource.DeletePool", "Folder.Delete"],
          "removes a containerVM, and at the end pool and folder of the VCH";
    FileManager.MakeDirectory(name: String, datacenter: Option<ManagedObject>, createParentDirectories: Option<bool>) -> Nothing
        : Safe, ["Datastore.FileManagement"], "makes the VCH's directories on the datastore";
    HostDatastoreBrowser.SearchDatastore_Task(datastorePath: String, searchSpec: Option<HostDatastoreBrowserSearchSpec>) -> ManagedObject
        : Never, ["Datastore.Browse"], "looks whether the VCH's directory is empty before it is removed";
    FileManager.DeleteDatastoreFile_Task(name: String, datacenter: Option<ManagedObject>) -> ManagedObject
        : Never, ["Datastore.FileManagement"], "removes boot images and the VCH's directory";
    FileManager.MoveDatastoreFile_Task(
        sourceName: String, sourceDatacenter: Option<ManagedObject>, destinationName: String,
        destinationDatacenter: Option<ManagedObject>, force: Option<bool>,
    ) -> ManagedObject
        : Never, ["Datastore.FileManagement"], "gives an upload its name when it is whole";
    VirtualDiskManager.DeleteVirtualDisk_Task(name: String, datacenter: Option<ManagedObject>) -> ManagedObject
        : Never, ["Datastore.FileManagement"], "removes the disk of a container that is gone";
    VirtualDiskManager.MoveVirtualDisk_Task(
        sourceName: String, sourceDatacenter: Option<ManagedObject>, destName: String,
        destDatacenter: Option<ManagedObject>, force: Option<bool>,
    ) -> ManagedObject
        : Never, ["Datastore.FileManagement"], "puts an uploaded image disk in its place";
    ResourcePool.ImportVApp(spec: Option<Import>, folder: Option<ManagedObject>, host: Option<ManagedObject>) -> ManagedObject
        : Never, ["VApp.Import", "VirtualMachine.Inventory.Create", "VirtualMachine.Config.AddNewDisk", "Resource.AssignVMToPool", "Datastore.AllocateSpace"],
          "opens the way for an image disk's upload";
    HttpNfcLease.HttpNfcLeaseProgress(percent: i32) -> Nothing
        : Safe, ["VApp.Import"], "keeps that way open";
    HttpNfcLease.HttpNfcLeaseComplete() -> Nothing
        : Safe, ["VApp.Import"], "closes it";
    HttpNfcLease.HttpNfcLeaseAbort(fault: Option<LocalizedMethodFault>) -> Nothing
        : Safe, ["VApp.Import"], "gives it up";
    PerformanceManager.QueryPerf(querySpec: Vec<PerfQuerySpec>) -> Vec<EntityMetric>
        : Safe, ["System.Read"], "reads what a containerVM uses";
    EventManager.CreateCollectorForEvents(filter: EventFilterSpec) -> ManagedObject
        : Safe, ["System.View"], "learns why a machine went off";
    HistoryCollector.DestroyCollector() -> Nothing
        : Safe, [], "ends that question";
}
