//! Tasks: work that a call begins and the collector tells the end of.
//!
//! The collector watches the server's recent tasks, so that a task costs no call beside the one that began
//! it. One that is not among them (a busy vCenter lists 200) is watched by a filter of its own.

use std::time::Duration;

use crate::faults::Fault;
use crate::property::{Collector, Objects};
use crate::session::{Client, Error};
use crate::soap::{Element as _, Node};
use crate::types::{
    DataObject, ManagedObject, Method, ObjectSpec, PropertyFilterSpec, PropertySpec, Selection,
    TaskInfoState, TraversalSpec,
};

/// How long a task may be missing among the recent ones before it is watched by itself.
const UNSEEN: Duration = Duration::from_secs(3);

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It waits for its turn.
    Queued,
    /// It runs; in percent, if the server says.
    Running(Option<u8>),
}

/// The filter by which the collector watches the recent tasks.
pub fn recent_tasks(manager: ManagedObject) -> PropertyFilterSpec {
    PropertyFilterSpec {
        propSet: vec![info()],
        objectSet: vec![ObjectSpec {
            obj: manager,
            skip: Some(true),
            selectSet: vec![Selection::from(TraversalSpec {
                name: None,
                r#type: "TaskManager".into(),
                path: "recentTask".into(),
                skip: Some(false),
                selectSet: Vec::new(),
            })],
        }],
        reportMissingObjectsInResults: None,
    }
}

fn info() -> PropertySpec {
    PropertySpec {
        r#type: "Task".into(),
        all: None,
        pathSet: vec!["info".into()],
    }
}

/// Calls a method that begins a task, and waits for its end. Returns what the task returned.
///
/// Dropped meanwhile, the task goes on.
///
/// # Errors
///
/// [`Error::Task`] with the task's fault; or the call's own error.
pub async fn run<M>(
    client: &Client,
    collector: &Collector,
    method: &M,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Option<Node>, Error>
where
    M: Method<Returns = ManagedObject>,
{
    let task = client.call(method).await?;
    let object = object_of(method);
    let ended = Pending {
        method: M::NAME,
        object,
        task,
    };
    ended.end(collector, progress).await
}

/// Waits for the end of a task that somebody began, however it ends; at once if it is over and forgotten. Whether
/// the server could be asked.
pub async fn ended(collector: &Collector, task: ManagedObject) -> bool {
    let other = Pending {
        method: "",
        object: task.clone(),
        task,
    };
    match other.end(collector, &mut quiet).await {
        Ok(_) | Err(Error::Task { .. } | Error::TaskGone { .. }) => true,
        Err(_) => false,
    }
}

fn object_of<M: DataObject>(method: &M) -> ManagedObject {
    crate::session::this(method)
}

/// A task that was begun.
#[derive(Debug)]
pub struct Pending {
    method: &'static str,
    object: ManagedObject,
    task: ManagedObject,
}

impl Pending {
    async fn end(
        &self,
        collector: &Collector,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Option<Node>, Error> {
        let seen = |objects: &Objects| objects.get(&self.task).is_some().then_some(());
        let mut own = None;
        let mut last = None;
        let ended = loop {
            let missing = own.is_none()
                && tokio::time::timeout(UNSEEN, collector.wait(seen))
                    .await
                    .is_err();
            if missing {
                own = Some(self.watch(collector).await?);
            }
            let watched = own.is_some();
            let end = collector
                .wait(|objects| {
                    let Some(task) = objects.get(&self.task) else {
                        // It left the recent ones, before its end was told of.
                        return (!watched).then_some(None);
                    };
                    let info = task.get("info")?;
                    match state(info) {
                        TaskInfoState::Success => Some(Some(Ok(info.child("result").cloned()))),
                        TaskInfoState::Error => Some(Some(Err(info.child("error").cloned()))),
                        state => {
                            let now = where_it_is(&state, info);
                            if last.as_ref() != Some(&now) {
                                progress(now.clone());
                                last = Some(now);
                            }
                            None
                        }
                    }
                })
                .await;
            match end {
                Ok(Some(end)) => break Ok(end),
                Ok(None) => own = Some(self.watch(collector).await?),
                Err(error) => break Err(error),
            }
        };
        if let Some(filter) = own {
            collector.unwatch(filter, &self.task).await;
        }
        ended?.map_err(|error| Error::Task {
            method: self.method,
            object: self.object.clone(),
            source: Fault::of_task(&error.unwrap_or_default()),
        })
    }

    /// Watches the task by a filter of its own.
    async fn watch(&self, collector: &Collector) -> Result<ManagedObject, Error> {
        let watched = collector.watch(self.filter()).await;
        watched.map_err(|error| match error.fault() {
            Some(fault) if fault.is_gone() => Error::TaskGone {
                method: self.method,
                object: self.object.clone(),
            },
            _ => error,
        })
    }

    fn filter(&self) -> PropertyFilterSpec {
        PropertyFilterSpec {
            propSet: vec![info()],
            objectSet: vec![ObjectSpec {
                obj: self.task.clone(),
                skip: Some(false),
                selectSet: Vec::new(),
            }],
            reportMissingObjectsInResults: None,
        }
    }
}

fn state(info: &Node) -> TaskInfoState {
    TaskInfoState::from(info.text_of("state").unwrap_or_default().trim())
}

fn where_it_is(state: &TaskInfoState, info: &Node) -> Progress {
    match state {
        TaskInfoState::Running => Progress::Running(
            info.text_of("progress")
                .and_then(|text| text.trim().parse().ok()),
        ),
        _ => Progress::Queued,
    }
}

/// The managed object that a task returned.
pub fn object(result: Option<Node>) -> Option<ManagedObject> {
    ManagedObject::read(&result?).ok()
}

/// Takes no interest in a task's progress.
pub fn quiet(_: Progress) {}
