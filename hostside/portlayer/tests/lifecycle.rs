//! Containers from creation to removal, on the in-process fake.

mod world;

use std::time::Duration;

use portlayer::{Error, Removal, State, WaitFor, WrongState};
use world::{ALL, STOPS, World, run, soon, told};

#[tokio::test]
async fn a_process_is_run_to_its_end() {
    let world = World::new();
    let layer = world.open().await;
    let (id, text, ended) = run(&layer, world.spec(&["echo", "hello"])).await;
    assert_eq!(text, "hello\n");
    assert_eq!(ended.status, 0);
    assert!(matches!(
        layer.inspect(&id).unwrap().state,
        State::Exited(_)
    ));
    let (_, _, ended) = run(&layer, world.spec(&["sh", "-c", "exit 42"])).await;
    assert_eq!(ended.status, 42);
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_running_and_says_why() {
    let world = World::new();
    let layer = world.open().await;
    for (program, status) in [("nosuch", 127), ("/dev/null", 126)] {
        let id = layer.create(world.spec(&[program])).await.unwrap();
        match layer.start(&id).await {
            Err(Error::Start { failure, .. }) => {
                assert_eq!(failure.status, status, "{}", failure.message);
                assert!(failure.message.contains(program), "{}", failure.message);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            layer.inspect(&id).unwrap().state,
            State::Created { failed: Some(_) }
        ));
        assert_eq!(layer.usage().memory, 0);
        layer.remove(&id, Removal::IfStopped).await.unwrap();
    }
    assert_eq!((world.machines().await, world.directories()), (0, 0));
}

#[tokio::test]
async fn a_container_stops_when_asked_and_starts_again() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&id).await.unwrap();
    assert!(matches!(
        layer.start(&id).await,
        Err(Error::WrongState(WrongState::NothingToDo(_)))
    ));
    soon(layer.stop(&id, None, None)).await.unwrap();
    let ended = layer.wait(&id, WaitFor::NotRunning).await.unwrap();
    assert_eq!((ended.status, ended.by_request), (143, true));
    assert!(matches!(
        layer.stop(&id, None, None).await,
        Err(Error::WrongState(WrongState::NothingToDo(_)))
    ));
    layer.start(&id).await.unwrap();
    soon(layer.restart(&id, None, None)).await.unwrap();
    assert!(matches!(
        layer.inspect(&id).unwrap().state,
        State::Running(_)
    ));
    assert!(matches!(
        layer.remove(&id, Removal::IfStopped).await,
        Err(Error::WrongState(WrongState::Running { .. }))
    ));
    soon(layer.remove(&id, Removal::Force)).await.unwrap();
    assert!(matches!(layer.inspect(&id), Err(Error::NoSuchContainer(_))));
    assert_eq!((world.machines().await, world.directories()), (0, 0));
    let expected = [
        "Create", "Start", "Kill", "Die", "Stop", "Start", "Kill", "Die", "Stop", "Start",
        "Restart", "Kill", "Die", "Destroy",
    ];
    assert_eq!(told(&layer, &id).await, expected);
}

#[tokio::test]
async fn a_process_that_does_not_stop_is_killed_after_its_grace() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer
        .create(world.spec(&["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]))
        .await
        .unwrap();
    layer.start(&id).await.unwrap();
    let grace = Some(Some(Duration::from_millis(50)));
    soon(layer.stop(&id, None, grace)).await.unwrap();
    assert_eq!(
        layer.wait(&id, WaitFor::NotRunning).await.unwrap().status,
        137
    );
}

#[tokio::test]
async fn one_of_many_gets_the_name() {
    let world = World::new();
    let layer = world.open().await;
    let creating: Vec<_> = (0..50)
        .map(|_| {
            let (layer, spec) = (layer.clone(), world.named("web", &["true"]));
            tokio::spawn(async move { layer.create(spec).await })
        })
        .collect();
    let mut won = Vec::new();
    for creating in creating {
        match soon(creating).await.unwrap() {
            Ok(id) => won.push(id),
            Err(Error::NameTaken { name, .. }) => assert_eq!(name.as_str(), "web"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(layer.find("web").unwrap(), won[0]);
    assert_eq!(layer.find("/web").unwrap(), won[0]);
    assert_eq!(layer.find(&won[0].short()).unwrap(), won[0]);
    assert_eq!((world.machines().await, world.directories()), (1, 1));
}

#[tokio::test]
async fn fifty_containers_start_and_end_at_once() {
    let world = World::new();
    let layer = world.open().await;
    let running: Vec<_> = (0..50)
        .map(|number: u32| {
            let (layer, spec) = (
                layer.clone(),
                world.spec(&["sh", "-c", &format!("exit {number}")]),
            );
            tokio::spawn(async move { run(&layer, spec).await.2.status })
        })
        .collect();
    for (number, running) in running.into_iter().enumerate() {
        assert_eq!(usize::from(soon(running).await.unwrap()), number);
    }
}

#[tokio::test]
async fn input_reaches_the_process_and_ends_with_who_sent_it() {
    let world = World::new();
    let layer = world.open().await;
    let mut spec = world.spec(&["cat"]);
    spec.process.stdin = portlayer::spec::Stdin::Once;
    let id = layer.create(spec).await.unwrap();
    let mut attached = layer.attach(&id, ALL, false).await.unwrap();
    layer.start(&id).await.unwrap();
    let mut input = attached.input.take().unwrap();
    input.write("abc".into()).await.unwrap();
    drop(input);
    assert_eq!(soon(attached.output.next()).await.unwrap().data, "abc");
    assert_eq!(soon(attached.output.next()).await, None);
    assert_eq!(
        soon(layer.wait(&id, WaitFor::NotRunning))
            .await
            .unwrap()
            .status,
        0
    );
}

#[tokio::test]
async fn a_paused_container_does_not_run_and_is_not_started() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    assert!(layer.pause(&id).await.is_err());
    layer.start(&id).await.unwrap();
    layer.pause(&id).await.unwrap();
    assert!(matches!(
        layer.inspect(&id).unwrap().state,
        State::Paused(_)
    ));
    assert!(matches!(
        layer.pause(&id).await,
        Err(Error::WrongState(WrongState::AlreadyPaused(_)))
    ));
    assert!(matches!(
        layer.start(&id).await,
        Err(Error::WrongState(WrongState::StartPaused))
    ));
    let exec = layer
        .exec_create(&id, world::process(&["true"]), serde_json::Value::Null)
        .await;
    assert!(matches!(
        exec,
        Err(Error::WrongState(WrongState::Paused(_)))
    ));
    layer.unpause(&id).await.unwrap();
    layer.pause(&id).await.unwrap();
    soon(layer.stop(&id, None, None)).await.unwrap();
}

#[tokio::test]
async fn a_container_is_called_by_its_new_name_only() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.named("old", &["true"])).await.unwrap();
    let other = layer.create(world.named("other", &["true"])).await.unwrap();
    layer.rename(&id, "new".parse().unwrap()).await.unwrap();
    assert_eq!(layer.find("new").unwrap(), id);
    assert!(layer.find("old").is_err());
    assert!(matches!(
        layer.rename(&id, "other".parse().unwrap()).await,
        Err(Error::NameTaken { by, .. }) if by == other
    ));
    layer.create(world.named("old", &["true"])).await.unwrap();
}

#[tokio::test]
async fn a_container_that_is_to_go_goes_when_it_ends() {
    let world = World::new();
    let layer = world.open().await;
    let mut spec = world.spec(&["sh", "-c", "exit 3"]);
    spec.at_end = portlayer::spec::AtEnd::Remove;
    let id = layer.create(spec).await.unwrap();
    let waiting = {
        let layer = layer.clone();
        tokio::spawn(async move { layer.wait(&id, WaitFor::Removed).await })
    };
    tokio::task::yield_now().await;
    layer.start(&id).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap().status, 3);
    assert_eq!((world.machines().await, layer.list().len()), (0, 0));
}

#[tokio::test]
async fn execs_have_their_own_output_and_status() {
    let world = World::new();
    let layer = world.open().await;
    let id = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&id).await.unwrap();
    let running: Vec<_> = (0..50u32)
        .map(|number| {
            let layer = layer.clone();
            tokio::spawn(async move {
                let script = format!("echo {number}; exit {number}");
                let process = world::process(&["sh", "-c", &script]);
                let exec = layer
                    .exec_create(&id, process, serde_json::Value::Null)
                    .await;
                let exec = exec.unwrap();
                let mut attached = layer
                    .exec_start(&exec, Some(ALL), None)
                    .await
                    .unwrap()
                    .unwrap();
                let mut data = Vec::new();
                while let Some(piece) = attached.output.next().await {
                    data.extend_from_slice(&piece.data);
                }
                assert_eq!(String::from_utf8(data).unwrap(), format!("{number}\n"));
                let state = layer.exec_inspect(&exec).unwrap().state;
                assert_eq!(
                    state,
                    portlayer::ExecState::Ended {
                        status: number as u8
                    }
                );
                assert!(matches!(
                    layer.exec_start(&exec, None, None).await,
                    Err(Error::WrongState(WrongState::ExecStarted(_)))
                ));
            })
        })
        .collect();
    for running in running {
        soon(running).await.unwrap();
    }
    let exec = layer
        .exec_create(&id, world::process(&["nosuch"]), serde_json::Value::Null)
        .await
        .unwrap();
    assert!(matches!(
        layer.exec_start(&exec, None, None).await,
        Err(Error::ExecStart { status: 127, .. })
    ));
}

#[tokio::test]
async fn a_container_is_removed_whole_while_its_execs_end() {
    let world = World::new();
    let layer = world.open().await;
    for _ in 0..20 {
        let id = layer.create(world.spec(&STOPS)).await.unwrap();
        layer.start(&id).await.unwrap();
        for _ in 0..10 {
            let process = world::process(&["sleep", "1000"]);
            let exec = layer.exec_create(&id, process, serde_json::Value::Null);
            let exec = exec.await.unwrap();
            layer.exec_start(&exec, None, None).await.unwrap();
        }
        soon(layer.remove(&id, Removal::Force)).await.unwrap();
    }
    // What ends late makes no new files either.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((world.machines().await, world.directories()), (0, 0));
}

#[tokio::test]
async fn memory_that_is_not_there_is_not_given() {
    let world = World::new();
    let mut config = world.config();
    config.limits.memory = hypervisor::Memory::from_mib(100).unwrap();
    let layer = portlayer::PortLayer::open(config).await.unwrap();
    let first = layer.create(world.spec(&STOPS)).await.unwrap();
    let second = layer.create(world.spec(&STOPS)).await.unwrap();
    layer.start(&first).await.unwrap();
    assert!(matches!(
        layer.start(&second).await,
        Err(Error::NoRoom { .. })
    ));
    soon(layer.stop(&first, None, None)).await.unwrap();
    layer.start(&second).await.unwrap();
    let mut large = world.spec(&["true"]);
    large.memory = Some(hypervisor::Memory::from_mib(101).unwrap());
    assert!(matches!(
        layer.create(large).await,
        Err(Error::NoRoom { .. })
    ));
}
