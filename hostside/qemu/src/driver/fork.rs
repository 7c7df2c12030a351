//! Several forks of one template, or of one running machine, asked for by name.

use std::sync::Arc;

use hypervisor::{
    Bystander, Cause, DiskSpec, Fork, Forked, Hypervisor, MachineId, MachineSpec, Start, Started,
    TemplateId,
};

use super::Qemu;
use crate::machine::resolve;
use crate::template::Templates;

impl Qemu {
    /// All of the children, or none.
    pub(super) async fn fork_template(
        &self,
        id: &TemplateId,
        children: Vec<Fork>,
    ) -> std::result::Result<Vec<MachineId>, Cause> {
        let all = Templates::of(&self.options)?.list()?;
        let template = all
            .into_iter()
            .find(|template| template.record.id == *id)
            .ok_or(Cause::NotFound { what: "template" })?;
        let mut made = Vec::new();
        for child in children {
            let spec = MachineSpec {
                id: child.id,
                name: child.name,
                start: Start::Fork,
                disks: child.disks,
                nics: child.nics,
                ..template.record.spec.clone()
            };
            let forked = async {
                self.create_here(spec, child.key, child.metadata)?;
                made.push(child.id);
                self.on(&child.id, |machine| async move { machine.power_on().await })
                    .await?;
                match self.machine(&child.id)?.view().began {
                    Some(Started::Forked { template, .. }) if template == *id => Ok(()),
                    // Its inputs have changed, so what is there now is another.
                    _ => Err(Cause::NotFound {
                        what: "template that still fits",
                    }),
                }
            };
            if let Err(cause) = forked.await {
                for id in made {
                    // What cannot be ended now is found by the next owner.
                    let _ = Hypervisor::destroy(self, &id).await;
                }
                return Err(cause);
            }
        }
        Ok(made)
    }

    /// All of the children of a running machine, or none; the parent runs on.
    pub(super) async fn fork_machine(
        &self,
        parent: &MachineId,
        mut disks: Vec<DiskSpec>,
        children: Vec<Fork>,
        bystander: Arc<dyn Bystander>,
    ) -> std::result::Result<Forked, Cause> {
        let model = self.machine(parent)?.view().spec;
        for disk in &mut disks {
            resolve(disk)?;
        }
        let mut made = Vec::new();
        let forked = async {
            for child in children {
                check_alike(&model, &child)?;
                let spec = MachineSpec {
                    id: child.id,
                    name: child.name,
                    disks: child.disks,
                    nics: child.nics,
                    ..model.clone()
                };
                self.create_here(spec, child.key, child.metadata)?;
                made.push(child.id);
            }
            let (capture, forked) = self
                .on(parent, move |machine| async move {
                    machine.capture(&disks, &*bystander).await
                })
                .await?;
            let capture = Arc::new(capture);
            let mut births = Vec::new();
            for id in &made {
                let (child, capture) = (self.machine(id)?, capture.clone());
                births.push(tokio::spawn(async move { child.be_born(&capture).await }));
            }
            // Every one to its end, so that none is on its way when they are destroyed.
            let mut outcome = Ok(forked);
            for birth in births {
                let born = birth
                    .await
                    .unwrap_or_else(|error| Err(Cause::because("the driver failed", error)));
                outcome = outcome.and_then(|forked| born.map(|()| forked));
            }
            outcome
        }
        .await;
        if forked.is_err() {
            for id in made {
                // What cannot be ended now is found by the next owner.
                let _ = Hypervisor::destroy(self, &id).await;
            }
        }
        forked
    }
}

/// A child has its parent's devices: its disks by their serials, and as many vNICs.
fn check_alike(parent: &MachineSpec, child: &Fork) -> std::result::Result<(), Cause> {
    let serials =
        |disks: &[DiskSpec]| -> Vec<_> { disks.iter().map(|disk| disk.serial.clone()).collect() };
    if serials(&parent.disks) == serials(&child.disks) && parent.nics.len() == child.nics.len() {
        return Ok(());
    }
    Err(Cause::hypervisor(
        "a child of a running machine has the disks and vNICs of its parent, in the same order",
    ))
}
