//! The one property collector: what the server's objects are, kept up to date by the server.
//!
//! Nothing else waits for anything. `WaitForUpdatesEx` is asked again as soon as it answers; each answer
//! changes the copy kept here, is told to the observer, and wakes everybody who waits. When the session or
//! the collector is gone, both are made anew, and what changed meanwhile is told as if it had come by
//! updates.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::session::{Client, Error, chain};
use crate::soap::Node;
use crate::types::{
    CreateFilter, CreatePropertyCollector, DestroyPropertyFilter, ManagedObject, ObjectUpdateKind,
    PropertyChangeOp, PropertyFilterSpec, UpdateSet, WaitForUpdatesEx, WaitOptions,
};

/// How long the server holds a question when nothing changes, seconds.
const HOLD: i32 = 120;
/// How long its answer is waited for.
const PATIENCE: Duration = Duration::from_secs(HOLD as u64 + 60);
/// The most objects in one answer; the rest comes with the next.
const OBJECTS_MAX: i32 = 2000;
/// The longest wait before a server that does not answer is asked again.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The properties of an object, by their path.
pub type Properties = BTreeMap<String, Node>;

/// What became of an object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The object.
    pub object: ManagedObject,
    /// What it was; `None` if it was not known.
    pub before: Option<Arc<Properties>>,
    /// What it is; `None` if it is gone.
    pub after: Option<Arc<Properties>>,
}

/// Told of every change, in order, before anybody who waits. Must not wait itself.
pub type Observer = Box<dyn Fn(&Change) + Send + Sync>;

/// Every object that is watched.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    all: HashMap<ManagedObject, Arc<Properties>>,
    /// The filters by which each is watched: it is gone when it left the last of them.
    filters: HashMap<ManagedObject, Vec<ManagedObject>>,
}

impl Objects {
    /// The properties of one.
    pub fn get(&self, object: &ManagedObject) -> Option<&Arc<Properties>> {
        self.all.get(object)
    }

    /// Those of one type.
    pub fn of_kind<'a>(
        &'a self,
        kind: &'a str,
    ) -> impl Iterator<Item = (&'a ManagedObject, &'a Arc<Properties>)> {
        self.all
            .iter()
            .filter(move |(object, _)| object.kind == kind)
    }
}

impl Objects {
    fn enter(&mut self, object: &ManagedObject, filter: &ManagedObject) {
        let filters = self.filters.entry(object.clone()).or_default();
        if !filters.contains(filter) {
            filters.push(filter.clone());
        }
    }

    /// Whether it left the last filter.
    fn leave(&mut self, object: &ManagedObject, filter: &ManagedObject) -> bool {
        let Some(filters) = self.filters.get_mut(object) else {
            return true;
        };
        filters.retain(|other| other != filter);
        let last = filters.is_empty();
        if last {
            self.filters.remove(object);
        }
        last
    }
}

struct Shared {
    client: Client,
    specs: Vec<PropertyFilterSpec>,
    objects: Mutex<Objects>,
    collector: Mutex<Option<ManagedObject>>,
    changes: watch::Sender<u64>,
    observer: Observer,
}

/// The collector of one client. Dropping it ends the waiting.
pub struct Collector {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    /// Watches what these filters say. When it returns, all of it is known.
    ///
    /// # Errors
    ///
    /// The server does not take the filters, or does not answer.
    pub async fn open(
        client: Client,
        specs: Vec<PropertyFilterSpec>,
        observer: Observer,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            client,
            specs,
            objects: Mutex::default(),
            collector: Mutex::default(),
            changes: watch::Sender::new(0),
            observer,
        });
        let (collector, version) = shared.begin().await?;
        let task = tokio::spawn(shared.clone().follow(collector, version)).abort_handle();
        Ok(Self { shared, task })
    }

    /// Looks at what is known now. Must not wait in there.
    pub fn look<T>(&self, look: impl FnOnce(&Objects) -> T) -> T {
        look(&self.shared.objects())
    }

    /// Waits until `look` finds what it looks for, now or after any change.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub async fn wait<T>(
        &self,
        mut look: impl FnMut(&Objects) -> Option<T> + Send,
    ) -> Result<T, Error> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look(&self.shared.objects()) {
                return Ok(found);
            }
            changes.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// Watches something more, until the session ends or [`Self::unwatch`].
    ///
    /// # Errors
    ///
    /// The server does not take the filter.
    pub async fn watch(&self, spec: PropertyFilterSpec) -> Result<ManagedObject, Error> {
        let collector = self.shared.collector().clone().ok_or(Error::Closed)?;
        let filter = CreateFilter {
            _this: collector,
            spec,
            partialUpdates: false,
        };
        self.shared.client.call(&filter).await
    }

    /// Ends what [`Self::watch`] began. That it is gone already is no failure.
    pub async fn unwatch(&self, filter: ManagedObject, object: &ManagedObject) {
        let destroy = DestroyPropertyFilter {
            _this: filter.clone(),
        };
        if let Err(error) = self.shared.client.call(&destroy).await {
            tracing::debug!(error = %chain(&error), "a filter was gone");
        }
        let mut objects = self.shared.objects();
        if objects.leave(object, &filter) {
            objects.all.remove(object);
        }
    }

    /// Changes a property of the copy, until the server says what it is: for what this client changed itself
    /// and a server may not tell of.
    pub fn assume(&self, object: &ManagedObject, change: impl FnOnce(&mut Properties)) {
        {
            let mut objects = self.shared.objects();
            if let Some(properties) = objects.all.get_mut(object) {
                change(Arc::make_mut(properties));
            }
        }
        self.shared.changes.send_modify(|count| *count += 1);
    }
}

/// Why following ended.
enum Ended {
    /// The session is not, or no longer, logged in.
    Session,
    /// The collector is gone, or does not know the version.
    Collector,
    /// No answer.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error.fault() {
            Some(fault) if fault.is_logged_out() => Self::Session,
            Some(fault)
                if fault.is_gone()
                    || fault.is("InvalidCollectorVersion")
                    || fault.is("RequestCanceled") =>
            {
                Self::Collector
            }
            _ => Self::Failed(error),
        }
    }
}

impl Shared {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        // Nothing that can panic runs under this lock but what `look` is given.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collector(&self) -> MutexGuard<'_, Option<ManagedObject>> {
        self.collector
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the collector and its filters, and learns all there is.
    async fn begin(&self) -> Result<(ManagedObject, String), Error> {
        let create = CreatePropertyCollector {
            _this: self.client.content().propertyCollector.clone(),
        };
        let collector = self.client.call(&create).await?;
        for spec in &self.specs {
            let filter = CreateFilter {
                _this: collector.clone(),
                spec: spec.clone(),
                partialUpdates: false,
            };
            self.client.call(&filter).await?;
        }
        let mut fresh = Objects::default();
        let mut version = String::new();
        loop {
            let wait = question(&collector, &version, 0);
            let Some(set) = self.client.call(&wait).await? else {
                break;
            };
            let more = set.truncated.unwrap_or(false);
            version.clone_from(&set.version);
            for (object, after) in changes(&mut fresh, set) {
                match after {
                    Some(after) => fresh.all.insert(object, after),
                    None => fresh.all.remove(&object),
                };
            }
            if !more {
                break;
            }
        }
        self.replace(fresh);
        *self.collector() = Some(collector.clone());
        Ok((collector, version))
    }

    /// Takes over everything as it is now, and tells of what is other than it was.
    fn replace(&self, fresh: Objects) {
        let before = {
            let mut objects = self.objects();
            objects.filters.clone_from(&fresh.filters);
            objects.all.clone()
        };
        let gone = before
            .keys()
            .filter(|object| !fresh.all.contains_key(*object))
            .map(|object| (object.clone(), None));
        let other = fresh
            .all
            .iter()
            .filter(|(object, after)| before.get(*object) != Some(*after))
            .map(|(object, after)| (object.clone(), Some(after.clone())));
        let changes: Vec<_> = gone.chain(other).collect();
        self.apply(changes);
    }

    fn apply(&self, changes: Vec<(ManagedObject, Option<Arc<Properties>>)>) {
        for (object, after) in changes {
            let before = {
                let mut objects = self.objects();
                match &after {
                    Some(after) => objects.all.insert(object.clone(), after.clone()),
                    None => objects.all.remove(&object),
                }
            };
            (self.observer)(&Change {
                object,
                before,
                after,
            });
        }
        self.changes.send_modify(|count| *count += 1);
    }

    async fn follow(self: Arc<Self>, mut collector: ManagedObject, mut version: String) {
        let mut backoff = Duration::from_millis(200);
        loop {
            let generation = self.client.sessions();
            let wait = question(&collector, &version, HOLD);
            let ended = match self.client.call_waiting(&wait, PATIENCE).await {
                Ok(answer) => {
                    backoff = Duration::from_millis(200);
                    if let Some(set) = answer {
                        version.clone_from(&set.version);
                        let changes = changes(&mut self.objects(), set);
                        self.apply(changes);
                    }
                    continue;
                }
                Err(error) => Ended::from(error),
            };
            let renewed = match ended {
                Ended::Session => match self.client.log_in_again(generation).await {
                    Ok(()) => self.begin().await,
                    Err(error) => Err(error),
                },
                Ended::Collector => self.begin().await,
                Ended::Failed(error) => {
                    tracing::warn!(error = %chain(&error), "waiting for updates failed; trying again");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            match renewed {
                Ok(renewed) => (collector, version) = renewed,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the collector could not be made anew; trying again");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }
}

fn question(collector: &ManagedObject, version: &str, hold: i32) -> WaitForUpdatesEx {
    WaitForUpdatesEx {
        _this: collector.clone(),
        version: Some(version.to_owned()),
        options: Some(WaitOptions {
            maxWaitSeconds: Some(hold),
            maxObjectUpdates: Some(OBJECTS_MAX),
        }),
    }
}

/// What each object of an update is after it, in order.
fn changes(objects: &mut Objects, set: UpdateSet) -> Vec<(ManagedObject, Option<Arc<Properties>>)> {
    let mut after: HashMap<ManagedObject, Option<Arc<Properties>>> = HashMap::new();
    let mut order = Vec::new();
    let updates = set.filterSet.into_iter().flat_map(|set| {
        let of = move |update| (set.filter.clone(), update);
        set.objectSet.into_iter().map(of)
    });
    for (filter, update) in updates {
        let stays = match update.kind {
            ObjectUpdateKind::Leave => !objects.leave(&update.obj, &filter),
            _ => {
                objects.enter(&update.obj, &filter);
                false
            }
        };
        if stays {
            continue;
        }
        let known = match after.get(&update.obj) {
            Some(state) => state.clone(),
            None => objects.all.get(&update.obj).cloned(),
        };
        for missing in &update.missingSet {
            tracing::debug!(object = %update.obj, path = missing.path, "a property cannot be read");
        }
        let state = match update.kind {
            ObjectUpdateKind::Leave => None,
            kind => {
                let mut properties = match (kind, known) {
                    (ObjectUpdateKind::Enter, _) | (_, None) => Properties::new(),
                    (_, Some(known)) => Arc::unwrap_or_clone(known),
                };
                for change in update.changeSet {
                    match (change.op, change.val) {
                        (PropertyChangeOp::Assign | PropertyChangeOp::Add, Some(value)) => {
                            properties.insert(change.name, value.0);
                        }
                        // "Assign" without a value is how a property is told to be unset.
                        _ => {
                            properties.remove(&change.name);
                        }
                    }
                }
                Some(Arc::new(properties))
            }
        };
        if !after.contains_key(&update.obj) {
            order.push(update.obj.clone());
        }
        after.insert(update.obj, state);
    }
    order
        .into_iter()
        .filter_map(|object| after.remove(&object).map(|state| (object, state)))
        .collect()
}

#[cfg(test)]
mod tests;
