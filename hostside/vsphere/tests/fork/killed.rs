//! Controllers that are killed in the middle of a fork, and what the next one finds.

use super::*;

/// A controller of its own, which ends as if killed.
struct Controller {
    runtime: tokio::runtime::Runtime,
    driver: Arc<Vsphere>,
}

impl Controller {
    fn start(simulator: &Simulator, ports: &Arc<Ports>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let driver = runtime.block_on(open(simulator, ports));
        Self { runtime, driver }
    }

    /// Powers on until `is_there`, and ends in the middle of it.
    fn killed(self, id: MachineId, is_there: impl Fn() -> bool) {
        let driver = self.driver.clone();
        self.runtime
            .spawn(async move { driver.power_on(&id).await });
        let until = Instant::now() + Duration::from_secs(20);
        while !is_there() {
            assert!(Instant::now() < until, "it did not get there");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        drop(self.driver);
    }
}

/// Kills a controller while a machine is powered on, when the simulator has been called so; then what the next one
/// repairs, and that the machine is as it was and can be forked.
fn killed_when(test: &str, hang: &str, mute: bool, repaired: Option<&str>) {
    let Some(simulator) = Simulator::start(test, Kind::VCenter) else {
        return;
    };
    let ports = Arc::new(Ports::default());
    let image = image(&simulator);
    let first = Controller::start(&simulator, &ports);
    let id = first.runtime.block_on(async {
        if !mute {
            let like = spec(&simulator, &image, "template");
            first.driver.make_template(&like).await.unwrap();
        }
        make(&first.driver, spec(&simulator, &image, "killed")).await
    });
    let before = if mute { 2 } else { 3 };
    ports.mute.store(mute, Ordering::SeqCst);
    simulator.forget_calls();
    simulator.rule(json!({"method": hang, "do": "drop-before"}));
    let there = tokio::runtime::Runtime::new().unwrap();
    first.killed(id, || {
        // The template is on its way, or the clone waits for what does not come.
        let last = if mute { "PowerOnVM_Task" } else { hang };
        simulator.calls().contains_key(last)
            && there.block_on(others_view(&simulator)).len() == before
    });
    simulator.forget_rules();
    ports.mute.store(false, Ordering::SeqCst);

    let next = Controller::start(&simulator, &ports);
    next.runtime.block_on(async {
        let repairs = next.driver.reconcile().await.unwrap();
        let said: Vec<&str> = repairs.iter().map(|repair| repair.what.as_str()).collect();
        assert_eq!(said, repaired.into_iter().collect::<Vec<_>>());
        assert!(repairs.iter().all(|repair| repair.id == id));
        assert_eq!(others_view(&simulator).await.len(), before - 1);
        let all = next.driver.list().await.unwrap();
        assert_eq!(all.len(), 1);
        let off = PowerState::Off {
            cause: StopCause::NeverStarted,
        };
        assert_eq!((all[0].id, &all[0].power), (id, &off));
        assert_eq!(next.driver.reconcile().await.unwrap(), []);
        next.driver.power_on(&id).await.unwrap();
        let began = next.driver.inspect(&id).await.unwrap().began;
        assert!(matches!(began, Some(Started::Forked { .. })), "{began:?}");
    });
}

#[test]
fn a_controller_killed_after_the_clone_leaves_what_the_next_one_removes() {
    let repaired = Some("removed a fork half made");
    killed_when("killed_after_the_clone", "ReconfigVM_Task", false, repaired);
}

#[test]
fn a_controller_killed_while_a_template_boots_leaves_what_the_next_one_removes() {
    killed_when("killed_while_a_template_boots", "Nothing", true, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fork_took_the_place_of_is_removed_by_whoever_comes_next() {
    let Some(rig) = Rig::start("what_a_fork_took_the_place_of", Kind::VCenter).await else {
        return;
    };
    rig.driver.make_template(&rig.spec("t")).await.unwrap();
    for comes_next in ["a controller", "a start", "a removal"] {
        let id = rig.make(&comes_next.replace(' ', "-")).await;
        rig.simulator.rule(json!({"method": "Destroy_Task", "do": "task-fault", "fault": "HostCommunication", "times": 1}));
        rig.power_on(&id).await;
        assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
        // It fails once, after the machine was powered on.
        let until = Instant::now() + Duration::from_secs(20);
        while !rig.simulator.calls().contains_key("Destroy_Task") {
            assert!(Instant::now() < until, "nobody removes it");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.machines(3).await;
        let machine = rig.driver.inspect(&id).await.unwrap();
        match comes_next {
            "a controller" => {
                drop(rig.driver.reconcile().await.unwrap());
                assert_eq!(rig.driver.inspect(&id).await.unwrap(), machine);
                rig.machines(2).await;
            }
            "a start" => {
                rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
                rig.power_on(&id).await;
                assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
                rig.machines(2).await;
            }
            _ => {}
        }
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(rig.machines(1).await.len(), 1);
        assert_eq!(rig.driver.list().await.unwrap(), []);
        rig.simulator.forget_calls();
    }
}
