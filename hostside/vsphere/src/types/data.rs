//! Data objects other than devices.

use std::time::SystemTime;

use super::devices::DeviceChange;
use super::macros::{data_objects, one_of, words};
use super::reference::ManagedObject;
use crate::soap::Raw;

words! {
    /// Whether a virtual machine runs.
    enum VirtualMachinePowerState {
        PoweredOff = "poweredOff",
        PoweredOn = "poweredOn",
        Suspended = "suspended",
    }
}

words! {
    /// Where a task is.
    enum TaskInfoState {
        Queued = "queued",
        Running = "running",
        Success = "success",
        Error = "error",
    }
}

words! {
    /// How shares are given.
    enum SharesLevel {
        Low = "low",
        Normal = "normal",
        High = "high",
        Custom = "custom",
    }
}

words! {
    /// What became of an object.
    enum ObjectUpdateKind {
        Modify = "modify",
        Enter = "enter",
        Leave = "leave",
    }
}

words! {
    /// What became of a property.
    enum PropertyChangeOp {
        Add = "add",
        Remove = "remove",
        Assign = "assign",
        IndirectRemove = "indirectRemove",
    }
}

words! {
    /// How much of an entity's children an event query covers.
    enum EventFilterSpecRecursionOption {
        Itself = "self",
        Children = "children",
        All = "all",
    }
}

one_of! {
    /// A step of a traversal: one written out, or one called by its name.
    enum Selection : "SelectionSpec" { TraversalSpec, SelectionSpec, }
}

one_of! {
    /// What is imported.
    enum Import : "ImportSpec" { VirtualMachineImportSpec, }
}

one_of! {
    /// What a machine may boot from.
    enum BootableDevice : "VirtualMachineBootOptionsBootableDevice" {
        VirtualMachineBootOptionsBootableCdromDevice,
    }
}

one_of! {
    /// An entry of an `extraConfig`.
    enum ConfigOption : "OptionValue" { OptionValue, }
}

one_of! {
    /// What a performance query gave for one entity.
    enum EntityMetric : "PerfEntityMetricBase" { PerfEntityMetric, }
}

one_of! {
    /// The samples of one counter.
    enum MetricSeries : "PerfMetricSeries" { PerfMetricIntSeries, }
}

data_objects! {
    /// The server's managers.
    struct ServiceContent {
        rootFolder: ManagedObject,
        propertyCollector: ManagedObject,
        viewManager: Option<ManagedObject>,
        about: AboutInfo,
        sessionManager: Option<ManagedObject>,
        authorizationManager: Option<ManagedObject>,
        perfManager: Option<ManagedObject>,
        eventManager: Option<ManagedObject>,
        taskManager: Option<ManagedObject>,
        licenseManager: Option<ManagedObject>,
        searchIndex: Option<ManagedObject>,
        fileManager: Option<ManagedObject>,
        virtualDiskManager: Option<ManagedObject>,
    }
    /// What the server is.
    struct AboutInfo {
        name: String,
        fullName: String,
        vendor: String,
        version: String,
        build: String,
        osType: String,
        productLineId: String,
        apiType: String,
        apiVersion: String,
        instanceUuid: Option<String>,
        licenseProductName: Option<String>,
        licenseProductVersion: Option<String>,
    }
    /// A session.
    struct UserSession {
        key: String,
        userName: String,
    }
    /// What a property collector watches.
    struct PropertyFilterSpec {
        propSet: Vec<PropertySpec>,
        objectSet: Vec<ObjectSpec>,
        reportMissingObjectsInResults: Option<bool>,
    }
    /// Which properties of objects of one type.
    struct PropertySpec {
        r#type: String,
        all: Option<bool>,
        pathSet: Vec<String>,
    }
    /// From which object on.
    struct ObjectSpec {
        obj: ManagedObject,
        skip: Option<bool>,
        selectSet: Vec<Selection>,
    }
    /// A step from objects of one type, through a property, to others.
    struct TraversalSpec {
        name: Option<String>,
        r#type: String,
        path: String,
        skip: Option<bool>,
        selectSet: Vec<Selection>,
    }
    /// A step that is written out elsewhere.
    struct SelectionSpec {
        name: Option<String>,
    }
    /// How long updates are waited for.
    struct WaitOptions {
        maxWaitSeconds: Option<i32>,
        maxObjectUpdates: Option<i32>,
    }
    /// What changed.
    struct UpdateSet {
        version: String,
        filterSet: Vec<PropertyFilterUpdate>,
        truncated: Option<bool>,
    }
    /// What changed of what one filter watches.
    struct PropertyFilterUpdate {
        filter: ManagedObject,
        objectSet: Vec<ObjectUpdate>,
        missingSet: Vec<MissingObject>,
    }
    /// What changed of one object.
    struct ObjectUpdate {
        kind: ObjectUpdateKind,
        obj: ManagedObject,
        changeSet: Vec<PropertyChange>,
        missingSet: Vec<MissingProperty>,
    }
    /// One property's change.
    struct PropertyChange {
        name: String,
        op: PropertyChangeOp,
        val: Option<Raw>,
    }
    /// An object that is not there, or not to be seen.
    struct MissingObject {
        obj: ManagedObject,
        fault: LocalizedMethodFault,
    }
    /// A property that is not there, or not to be seen.
    struct MissingProperty {
        path: String,
        fault: LocalizedMethodFault,
    }
    /// A fault and the server's words for it.
    struct LocalizedMethodFault {
        fault: Raw,
        localizedMessage: Option<String>,
    }
    /// Options of `RetrievePropertiesEx`.
    struct RetrieveOptions {
        maxObjects: Option<i32>,
    }
    /// A page of properties.
    struct RetrieveResult {
        token: Option<String>,
        objects: Vec<ObjectContent>,
    }
    /// The properties of one object.
    struct ObjectContent {
        obj: ManagedObject,
        propSet: Vec<DynamicProperty>,
        missingSet: Vec<MissingProperty>,
    }
    /// A property.
    struct DynamicProperty {
        name: String,
        val: Raw,
    }
    /// An entry of an `extraConfig`.
    struct OptionValue {
        key: String,
        value: Raw,
    }
    /// Reservation, limit and shares of a resource: MHz or MB.
    struct ResourceAllocationInfo {
        reservation: Option<i64>,
        expandableReservation: Option<bool>,
        limit: Option<i64>,
        shares: Option<SharesInfo>,
    }
    /// Shares.
    struct SharesInfo {
        shares: i32,
        level: SharesLevel,
    }
    /// What a resource pool is given.
    struct ResourceConfigSpec {
        entity: Option<ManagedObject>,
        changeVersion: Option<String>,
        cpuAllocation: ResourceAllocationInfo,
        memoryAllocation: ResourceAllocationInfo,
    }
    /// Which files of a directory are listed.
    struct HostDatastoreBrowserSearchSpec {
        matchPattern: Vec<String>,
    }
    /// Where a machine's files are.
    struct VirtualMachineFileInfo {
        vmPathName: Option<String>,
        snapshotDirectory: Option<String>,
        suspendDirectory: Option<String>,
        logDirectory: Option<String>,
    }
    /// What VMware's tools in the guest, or what stands for them, are asked to do.
    struct ToolsConfigInfo {
        afterPowerOn: Option<bool>,
        afterResume: Option<bool>,
        beforeGuestStandby: Option<bool>,
        beforeGuestShutdown: Option<bool>,
        beforeGuestReboot: Option<bool>,
        toolsUpgradePolicy: Option<String>,
        syncTimeWithHost: Option<bool>,
    }
    /// What powering off and suspending mean.
    struct VirtualMachineDefaultPowerOpInfo {
        powerOffType: Option<String>,
        suspendType: Option<String>,
        resetType: Option<String>,
        standbyAction: Option<String>,
    }
    /// How a machine boots.
    struct VirtualMachineBootOptions {
        bootDelay: Option<i64>,
        enterBIOSSetup: Option<bool>,
        efiSecureBootEnabled: Option<bool>,
        bootRetryEnabled: Option<bool>,
        bootOrder: Vec<BootableDevice>,
    }
    /// It boots from its CD-ROM.
    struct VirtualMachineBootOptionsBootableCdromDevice {
    }
    /// What a machine is made as, or changed to.
    struct VirtualMachineConfigSpec {
        changeVersion: Option<String>,
        name: Option<String>,
        version: Option<String>,
        uuid: Option<String>,
        instanceUuid: Option<String>,
        guestId: Option<String>,
        annotation: Option<String>,
        files: Option<VirtualMachineFileInfo>,
        tools: Option<ToolsConfigInfo>,
        powerOpInfo: Option<VirtualMachineDefaultPowerOpInfo>,
        numCPUs: Option<i32>,
        numCoresPerSocket: Option<i32>,
        memoryMB: Option<i64>,
        memoryHotAddEnabled: Option<bool>,
        cpuHotAddEnabled: Option<bool>,
        deviceChange: Vec<DeviceChange>,
        cpuAllocation: Option<ResourceAllocationInfo>,
        memoryAllocation: Option<ResourceAllocationInfo>,
        extraConfig: Vec<ConfigOption>,
        swapPlacement: Option<String>,
        bootOptions: Option<VirtualMachineBootOptions>,
        firmware: Option<String>,
    }
    /// Where a copy of a running machine is made, and what of its devices differs.
    struct VirtualMachineRelocateSpec {
        folder: Option<ManagedObject>,
        pool: Option<ManagedObject>,
        deviceChange: Vec<DeviceChange>,
    }
    /// A copy of a running machine.
    struct VirtualMachineInstantCloneSpec {
        name: String,
        location: VirtualMachineRelocateSpec,
        config: Vec<ConfigOption>,
        biosUuid: Option<String>,
    }
    /// A machine that is imported.
    struct VirtualMachineImportSpec {
        configSpec: VirtualMachineConfigSpec,
        resPoolEntity: Option<ManagedObject>,
    }
    /// Where an import's files go.
    struct HttpNfcLeaseInfo {
        lease: ManagedObject,
        entity: ManagedObject,
        deviceUrl: Vec<HttpNfcLeaseDeviceUrl>,
        totalDiskCapacityInKB: i64,
        leaseTimeout: i32,
    }
    /// Where one of them goes.
    struct HttpNfcLeaseDeviceUrl {
        key: String,
        importKey: String,
        url: String,
        sslThumbprint: String,
        disk: Option<bool>,
        targetId: Option<String>,
    }
    /// What is asked of a performance manager.
    struct PerfQuerySpec {
        entity: ManagedObject,
        startTime: Option<SystemTime>,
        endTime: Option<SystemTime>,
        maxSample: Option<i32>,
        metricId: Vec<PerfMetricId>,
        intervalId: Option<i32>,
        format: Option<String>,
    }
    /// A counter, of the whole entity or of one instance within.
    struct PerfMetricId {
        counterId: i32,
        instance: String,
    }
    /// What an entity used.
    struct PerfEntityMetric {
        entity: ManagedObject,
        sampleInfo: Vec<PerfSampleInfo>,
        value: Vec<MetricSeries>,
    }
    /// When a sample was taken, and of how many seconds it is.
    struct PerfSampleInfo {
        timestamp: Option<SystemTime>,
        interval: i32,
    }
    /// The samples of one counter.
    struct PerfMetricIntSeries {
        id: PerfMetricId,
        value: Vec<i64>,
    }
    /// Which events.
    struct EventFilterSpec {
        entity: Option<EventFilterSpecByEntity>,
        disableFullMessage: Option<bool>,
        eventTypeId: Vec<String>,
        maxCount: Option<i32>,
    }
    /// Of which entity.
    struct EventFilterSpecByEntity {
        entity: ManagedObject,
        recursion: EventFilterSpecRecursionOption,
    }
    /// The privileges a user has on an entity.
    struct UserPrivilegeResult {
        entity: ManagedObject,
        privileges: Vec<String>,
    }
}
