//! Controllers that are killed at any moment, on the in-process fake: nothing is lost, doubled or orphaned.

mod world;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hypervisor::fake::flood_byte;
use portlayer::spec::RestartPolicy;
use portlayer::{
    Action, ContainerId, Follow, LogQuery, Output, PortLayer, Removal, State, WaitFor, WrongState,
};
use world::{STOPS, World, is_about, soon, told};

/// Everything a container wrote to its standard output.
async fn log(layer: &PortLayer, id: &ContainerId) -> Vec<u8> {
    let query = LogQuery {
        stdout: true,
        stderr: true,
        since: None,
        until: None,
        tail: None,
        follow: Follow::No,
    };
    let mut reader = layer.logs(id, query).await.expect("log");
    let mut data = Vec::new();
    while let Some(record) = soon(reader.next()).await {
        let record = record.expect("record");
        assert_eq!(record.output, Output::Stdout);
        data.extend_from_slice(&record.data);
    }
    data
}

fn flood(length: u64) -> Vec<u8> {
    (0..length).map(flood_byte).collect()
}

#[tokio::test]
async fn a_new_controller_goes_on_where_the_last_one_was_killed() {
    let world = World::new();
    let layer = world.open().await;
    let argv = ["sh", "-c", "echo one; sleep 1; echo two; exit 9"];
    let id = layer.create(world.named("web", &argv)).await.unwrap();
    layer.start(&id).await.unwrap();
    layer.close().await;
    drop(layer);

    let layer = world.open().await;
    assert_eq!(layer.find("web").unwrap(), id);
    let ended = soon(layer.wait(&id, WaitFor::NotRunning)).await.unwrap();
    assert_eq!(ended.status, 9);
    assert_eq!(log(&layer, &id).await, b"one\ntwo\n");
    layer.close().await;

    let layer = world.open().await;
    match layer.inspect(&id).unwrap().state {
        State::Exited(ended) => assert_eq!(ended.status, 9),
        other => panic!("{other:?}"),
    }
    assert_eq!(told(&layer, &id).await, ["Create", "Start", "Die"]);
    soon(layer.remove(&id, Removal::IfStopped)).await.unwrap();
    assert_eq!((world.machines().await, world.directories()), (0, 0));
}

#[tokio::test]
async fn a_machine_that_went_off_unseen_is_an_end_with_a_reason() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&id).await.unwrap();
    layer.close().await;
    use hypervisor::Hypervisor as _;
    let machines = world.host.open().list().await.unwrap();
    world.host.crash(&machines[0].id).unwrap();

    let layer = world.open().await;
    let ended = soon(layer.wait(&id, WaitFor::NotRunning)).await.unwrap();
    assert_eq!(ended.status, 137);
    assert!(ended.error.contains("hypervisor failed"), "{}", ended.error);
    assert_eq!(told(&layer, &id).await, ["Create", "Start", "Die"]);
}

#[tokio::test]
async fn what_happens_to_a_machine_from_outside_shows_at_once() {
    use hypervisor::Hypervisor as _;
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&id).await.unwrap();
    let outside = world.host.open();
    let machine = outside.list().await.unwrap()[0].id;
    outside.suspend(&machine).await.unwrap();
    let mut tries = 0;
    while !matches!(layer.inspect(&id).unwrap().state, State::Paused(_)) {
        tokio::task::yield_now().await;
        tries += 1;
        assert!(tries < 100_000, "it does not show");
    }
    outside.resume(&machine).await.unwrap();
    outside
        .power_off(&machine, hypervisor::PowerOff::Cut)
        .await
        .unwrap();
    assert_eq!(
        soon(layer.wait(&id, WaitFor::NotRunning))
            .await
            .unwrap()
            .status,
        137
    );
    layer.start(&id).await.unwrap();
    world.host.remove(&machine).unwrap();
    soon(layer.wait(&id, WaitFor::Removed)).await.unwrap();
    assert_eq!((layer.list().len(), world.directories()), (0, 0));
}

#[tokio::test]
async fn policies_start_containers_again_also_at_the_controllers_start() {
    let world = World::new();
    let layer = world.open().await;
    let mut spec = world.spec(&["sh", "-c", "exit 1"]);
    spec.restart = RestartPolicy::OnFailure(3.try_into().ok());
    let failing = layer.create(spec).await.unwrap();
    layer.start(&failing).await.unwrap();
    let ended = soon(layer.wait(&failing, WaitFor::NotRunning))
        .await
        .unwrap();
    assert_eq!(ended.status, 1);
    assert_eq!(layer.inspect(&failing).unwrap().restarts, 3);

    let mut ids = Vec::new();
    for policy in [
        RestartPolicy::Always,
        RestartPolicy::UnlessStopped,
        RestartPolicy::No,
    ] {
        let mut spec = world.spec(&STOPS);
        spec.restart = policy;
        let id = layer.create(spec).await.unwrap();
        layer.start(&id).await.unwrap();
        soon(layer.stop(&id, None, None)).await.unwrap();
        ids.push(id);
    }
    layer.close().await;
    let layer = world.open().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !matches!(layer.inspect(&ids[0]).unwrap().state, State::Running(_)) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for id in &ids[1..] {
        assert!(matches!(layer.inspect(id).unwrap().state, State::Exited(_)));
    }
}

#[tokio::test]
async fn an_execs_status_is_known_after_the_controller_was_killed() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&id).await.unwrap();
    let process = world::process(&["sh", "-c", "sleep 1; exit 5"]);
    let exec = layer
        .exec_create(&id, process, serde_json::Value::Null)
        .await
        .unwrap();
    layer.exec_start(&exec, None, None).await.unwrap();
    layer.close().await;
    let layer = world.open().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match layer.exec_inspect(&exec).unwrap().state {
            portlayer::ExecState::Ended { status: 5 } => break,
            portlayer::ExecState::Ended { status: 137 }
                if matches!(layer.inspect(&id).unwrap().state, State::Starting) => {}
            portlayer::ExecState::Running { .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A hundred controllers, each killed after a random while, with containers being made, started, stopped and
/// removed all the time.
#[tokio::test]
async fn a_hundred_killed_controllers_lose_nothing() {
    const CONTAINERS: u32 = 12;
    const LENGTH: u64 = 200_000;
    let world = World::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..100 {
        let layer = world.open().await;
        let mut load = Vec::new();
        for number in 0..CONTAINERS {
            let (layer, spec) = (layer.clone(), spec(&world, number, LENGTH));
            load.push(tokio::spawn(async move { push_on(&layer, spec).await }));
        }
        let (churner, spec) = (layer.clone(), world.named("churn", &STOPS));
        load.push(tokio::spawn(async move { churn(&churner, spec).await }));
        tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
        for task in load {
            task.abort();
        }
        layer.close().await;
    }
    let layer = world.open().await;
    let mut expected = BTreeMap::new();
    for number in 0..CONTAINERS {
        soon(push_on(&layer, spec(&world, number, LENGTH))).await;
        let id = layer.find(&format!("load{number}")).unwrap();
        let ended = soon(layer.wait(&id, WaitFor::NotRunning)).await.unwrap();
        assert_eq!(u32::from(ended.status), number, "{}", ended.error);
        assert!(
            log(&layer, &id).await == flood(LENGTH),
            "the output of {number} is not exact"
        );
        expected.insert(id, 1);
    }
    if let Ok(id) = layer.find("churn") {
        soon(layer.remove(&id, Removal::Force)).await.unwrap();
    }
    let now = SystemTime::now() + Duration::from_millis(1);
    let mut events = layer.events(Some(SystemTime::UNIX_EPOCH), Some(now));
    let mut dies: BTreeMap<ContainerId, u32> = BTreeMap::new();
    while let Some(event) = soon(events.next()).await {
        if let Action::Die { .. } = event.action
            && let Some(id) = expected.keys().find(|id| is_about(&event, id))
        {
            *dies.entry(*id).or_default() += 1;
        }
    }
    assert_eq!(dies, expected, "each ended once");
    assert_eq!(world.machines().await, CONTAINERS as usize);
    assert_eq!(world.directories(), CONTAINERS as usize);
}

fn spec(world: &World, number: u32, length: u64) -> portlayer::spec::ContainerSpec {
    let script = format!("flood {length}; exit {number}");
    let argv = ["sh", "-c", &script];
    world.named(&format!("load{number}"), &argv)
}

/// Makes and starts it, if that is still to be done.
async fn push_on(layer: &PortLayer, spec: portlayer::spec::ContainerSpec) {
    let name = spec.name.clone().expect("name");
    let id = match layer.find(name.as_str()) {
        Ok(id) => id,
        Err(_) => match layer.create(spec).await {
            Ok(id) => id,
            Err(portlayer::Error::ShuttingDown) => return,
            Err(error) => panic!("{error:?}"),
        },
    };
    if let State::Created { failed } = layer.inspect(&id).expect("container").state {
        assert_eq!(failed, None);
        match layer.start(&id).await {
            Ok(())
            | Err(
                portlayer::Error::ShuttingDown
                | portlayer::Error::WrongState(WrongState::NothingToDo(_)),
            ) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn churn(layer: &PortLayer, spec: portlayer::spec::ContainerSpec) {
    loop {
        let id = match layer.find("churn") {
            Ok(id) => id,
            Err(_) => match layer.create(spec.clone()).await {
                Ok(id) => id,
                Err(_) => return,
            },
        };
        let _ = layer.start(&id).await;
        let _ = layer.stop(&id, None, None).await;
        let _ = layer.remove(&id, Removal::Force).await;
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
