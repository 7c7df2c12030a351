use serde_json::{Value, json};

use super::world::{OK, World};

#[tokio::test]
async fn every_answer_says_who_gave_it() {
    let world = World::new().await;
    for path in ["/_ping", "/v1.24/_ping", "/v9.9/_ping", "/nowhere"] {
        let response = world.send("GET", path, None).await;
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("api-version"), "1.47");
        assert_eq!(header("docker-experimental"), "false");
        assert_eq!(header("ostype"), "linux");
        assert!(header("server").starts_with("Docker/"));
    }
    assert_eq!(world.ask("GET", "/_ping", None).await, (OK, "OK".into()));
    assert_eq!(world.ask("HEAD", "/v1.47/_ping", None).await.0, OK);
}

#[tokio::test]
async fn what_is_no_route_or_no_version_is_said_in_docker_s_words() {
    let world = World::new().await;
    let cases = [
        ("GET", "/nowhere", 404, "page not found"),
        ("POST", "/containers/json", 404, "page not found"),
        (
            "GET",
            "/v1.23/info",
            400,
            "client version 1.23 is too old. Minimum supported API version is 1.24",
        ),
        (
            "GET",
            "/v1.99/info",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.47",
        ),
        (
            "GET",
            "/containers/none/json",
            404,
            "No such container: none",
        ),
        (
            "POST",
            "/containers/none/start",
            404,
            "No such container: none",
        ),
        (
            "GET",
            "/images/sample/none/json",
            404,
            "No such image: sample/none",
        ),
        ("GET", "/exec/none/json", 404, "No such exec instance: none"),
        ("GET", "/networks/mine", 404, "network mine not found"),
        ("DELETE", "/networks/bridge", 403, "pre-defined network"),
        ("GET", "/containers/json?filters=x", 400, "invalid filter"),
        (
            "GET",
            "/containers/json?filters={\"bogus\":[\"1\"]}",
            400,
            "invalid filter 'bogus'",
        ),
        (
            "POST",
            "/images/create?fromImage=busybox&tag=latest",
            404,
            "No such image: busybox:latest",
        ),
    ];
    for (method, path, status, words) in cases {
        let path = path
            .replace('"', "%22")
            .replace('{', "%7B")
            .replace('}', "%7D");
        let (found, answer) = world.json(method, &path, None).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(words), "{method} {path}: {message}");
    }
}

#[tokio::test]
async fn what_is_not_supported_says_so_by_name() {
    let world = World::new().await;
    let cases = [
        ("POST", "/build", "building images"),
        ("POST", "/session", "building images"),
        ("POST", "/networks/create", "creating networks"),
        ("POST", "/networks/bridge/connect", "connecting"),
        ("POST", "/volumes/create", "creating volumes"),
        ("POST", "/swarm/init", "swarm"),
        ("GET", "/services", "swarm"),
        ("GET", "/plugins", "plugins"),
        ("POST", "/auth", "registry"),
        ("GET", "/images/search?term=x", "searching"),
        ("POST", "/images/test/push", "pushing"),
        ("GET", "/images/test/get", "docker save"),
        ("GET", "/distribution/sample/test/json", "registry"),
        ("POST", "/containers/x/checkpoints", "checkpoints"),
    ];
    for (method, path, words) in cases {
        let (status, answer) = world.json(method, path, None).await;
        assert_eq!(status, 501, "{method} {path}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
}

/// Every operation of the Engine API 1.47 (its `swagger.yaml`), by method.
const OPERATIONS: [(&str, &[&str]); 4] = [
    (
        "GET",
        &[
            "/containers/json",
            "/containers/x/json",
            "/containers/x/top",
            "/containers/x/logs",
            "/containers/x/changes",
            "/containers/x/export",
            "/containers/x/stats",
            "/containers/x/attach/ws",
            "/containers/x/archive?path=/",
            "/images/json",
            "/images/x/json",
            "/images/x/history",
            "/images/search?term=x",
            "/images/x/get",
            "/images/get?names=x",
            "/info",
            "/version",
            "/_ping",
            "/events?until=1",
            "/system/df",
            "/exec/x/json",
            "/volumes",
            "/volumes/x",
            "/networks",
            "/networks/x",
            "/plugins",
            "/plugins/privileges",
            "/plugins/x/json",
            "/nodes",
            "/nodes/x",
            "/swarm",
            "/swarm/unlockkey",
            "/services",
            "/services/x",
            "/services/x/logs",
            "/tasks",
            "/tasks/x",
            "/tasks/x/logs",
            "/secrets",
            "/secrets/x",
            "/configs",
            "/configs/x",
            "/distribution/x/json",
        ],
    ),
    (
        "POST",
        &[
            "/containers/create",
            "/containers/x/resize?h=1&w=1",
            "/containers/x/start",
            "/containers/x/stop",
            "/containers/x/restart",
            "/containers/x/kill",
            "/containers/x/update",
            "/containers/x/rename?name=y",
            "/containers/x/pause",
            "/containers/x/unpause",
            "/containers/x/attach",
            "/containers/x/wait",
            "/containers/prune",
            "/containers/x/exec",
            "/build",
            "/build/prune",
            "/images/create?fromImage=x",
            "/images/x/push",
            "/images/x/tag?repo=y",
            "/images/prune",
            "/images/load",
            "/auth",
            "/commit?container=x",
            "/exec/x/start",
            "/exec/x/resize?h=1&w=1",
            "/volumes/create",
            "/volumes/prune",
            "/networks/create",
            "/networks/x/connect",
            "/networks/x/disconnect",
            "/networks/prune",
            "/plugins/pull",
            "/plugins/x/enable",
            "/plugins/x/disable",
            "/plugins/x/upgrade",
            "/plugins/create",
            "/plugins/x/push",
            "/plugins/x/set",
            "/nodes/x/update",
            "/swarm/init",
            "/swarm/join",
            "/swarm/leave",
            "/swarm/update",
            "/swarm/unlock",
            "/services/create",
            "/services/x/update",
            "/secrets/create",
            "/secrets/x/update",
            "/configs/create",
            "/configs/x/update",
            "/session",
        ],
    ),
    ("PUT", &["/containers/x/archive?path=/", "/volumes/x"]),
    (
        "DELETE",
        &[
            "/containers/x",
            "/images/x",
            "/volumes/x",
            "/networks/x",
            "/plugins/x",
            "/nodes/x",
            "/services/x",
            "/secrets/x",
            "/configs/x",
        ],
    ),
];

#[tokio::test]
async fn every_operation_of_the_engine_is_known() {
    let world = World::new().await;
    for (method, paths) in OPERATIONS {
        for path in paths {
            let (status, answer) = world.ask(method, path, None).await;
            assert!(
                !answer.contains("page not found") && status != 405 && status != 500,
                "{method} {path}: {status} {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_container_lives_as_docker_s_do() {
    let world = World::new().await;
    let id = world
        .create(
            "web",
            &["sleep", "1000"],
            json!({"Labels": {"tier": "front"}}),
        )
        .await;
    let (_, made) = world.json("GET", "/containers/web/json", None).await;
    assert_eq!(made["Id"], json!(id));
    assert_eq!(made["Name"], "/web");
    assert_eq!(made["State"]["Status"], "created");
    assert_eq!(made["Config"]["Hostname"], json!(id[..12]));
    assert_eq!(made["HostConfig"]["Memory"], json!(64 << 20));
    assert_eq!(made["HostConfig"]["NanoCpus"], json!(1_000_000_000));
    assert_eq!(made["Path"], "sleep");

    let conflict = world
        .json(
            "POST",
            "/containers/create?name=web",
            Some(json!({"Image": "test", "Cmd": ["true"]})),
        )
        .await;
    assert_eq!(conflict.0, 409);
    assert!(
        conflict.1["message"]
            .as_str()
            .unwrap()
            .contains("is already in use by container")
    );

    let post = async |action: &str| {
        world
            .ask("POST", &format!("/containers/web/{action}"), None)
            .await
    };
    assert_eq!(post("start").await.0, 204);
    assert_eq!(post("start").await, (304, String::new()));
    let (_, running) = world
        .json("GET", &format!("/containers/{}/json", &id[..12]), None)
        .await;
    assert_eq!(running["State"]["Running"], true);
    assert!(running["State"]["Pid"].as_u64().unwrap() > 0);

    assert_eq!(post("pause").await.0, 204);
    assert_eq!(post("pause").await.0, 409);
    let (status, answer) = post("exec").await;
    assert_eq!(
        (status, answer.contains("No exec command specified")),
        (400, true)
    );
    let exec = world
        .json(
            "POST",
            "/containers/web/exec",
            Some(json!({"Cmd": ["true"]})),
        )
        .await;
    assert_eq!(exec.0, 409);
    assert!(
        exec.1["message"]
            .as_str()
            .unwrap()
            .contains("is paused, unpause the container before exec")
    );
    assert_eq!(post("unpause").await.0, 204);
    assert_eq!(post("unpause").await.0, 409);

    assert_eq!(post("rename?name=api").await.0, 204);
    let post = async |action: &str| {
        world
            .ask("POST", &format!("/containers/api/{action}"), None)
            .await
    };
    let (status, answer) = world.json("DELETE", "/containers/api", None).await;
    assert_eq!(status, 409);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("stop the container before removing or force remove"),
        "{message}"
    );
    assert_eq!(post("stop?t=0").await.0, 204);
    assert_eq!(post("stop").await.0, 304);
    assert_eq!(post("kill").await.0, 409);
    assert_eq!(post("kill?signal=bogus").await.0, 400);
    let (_, stopped) = world.json("GET", "/containers/api/json", None).await;
    assert_eq!(stopped["State"]["Status"], "exited");
    assert_eq!(stopped["State"]["ExitCode"], 137);
    assert_eq!(post("wait").await, (OK, "{\"StatusCode\":137}\n".into()));
    assert_eq!(world.ask("DELETE", "/containers/api", None).await.0, 204);
    assert_eq!(world.ask("DELETE", "/containers/api", None).await.0, 404);
}

#[tokio::test]
async fn a_command_that_is_not_there_is_the_client_s_mistake() {
    let world = World::new().await;
    world.create("bad", &["no-such-program"], json!({})).await;
    let (status, answer) = world.json("POST", "/containers/bad/start", None).await;
    assert_eq!(status, 400);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("executable file not found"), "{message}");
    let (_, state) = world.json("GET", "/containers/bad/json", None).await;
    assert_eq!(state["State"]["ExitCode"], 127);
}

#[tokio::test]
async fn a_listing_shows_what_filters_choose() {
    let world = World::new().await;
    world
        .create("one", &["true"], json!({"Labels": {"a": "1"}}))
        .await;
    world.run("two", &["sleep", "1000"]).await;
    world.run("three", &["sh", "-c", "exit 3"]).await;
    world.ask("POST", "/containers/three/wait", None).await;
    let names = async |query: &str| {
        let query = query
            .replace('"', "%22")
            .replace('{', "%7B")
            .replace('}', "%7D");
        let (status, list) = world
            .json("GET", &format!("/containers/json?{query}"), None)
            .await;
        assert_eq!(status, OK, "{list}");
        let names = list.as_array().unwrap().iter();
        names
            .map(|c| c["Names"][0].as_str().unwrap()[1..].to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let cases = [
        ("", "two"),
        ("all=1", "three two one"),
        ("limit=1", "three"),
        (r#"filters={"status":["exited"]}"#, "three"),
        (r#"filters={"status":["created","running"]}"#, "two one"),
        (r#"all=1&filters={"exited":["3"]}"#, "three"),
        (r#"all=1&filters={"exited":["0"]}"#, ""),
        (r#"all=1&filters={"label":["a=1"]}"#, "one"),
        (r#"all=1&filters={"name":["t"]}"#, "three two"),
        (r#"all=1&filters={"name":["^two$"]}"#, "two"),
        (r#"all=1&filters={"before":["two"]}"#, "one"),
        (r#"all=1&filters={"since":["two"]}"#, "three"),
        (r#"all=1&filters={"ancestor":["test"]}"#, "three two one"),
        (r#"all=1&filters={"ancestor":["other"]}"#, ""),
        (r#"all=1&filters={"network":["none"]}"#, ""),
        (r#"all=1&filters={"network":["bridge"]}"#, "three two one"),
        (r#"all=1&filters={"health":["none"]}"#, "three two one"),
        (r#"all=1&filters={"health":["healthy"]}"#, ""),
    ];
    for (query, expected) in cases {
        assert_eq!(names(query).await, expected, "{query}");
    }
    let (_, pruned) = world.json("POST", "/containers/prune", None).await;
    assert_eq!(pruned["ContainersDeleted"].as_array().unwrap().len(), 2);
    assert_eq!(names("all=1").await, "two");
}

#[tokio::test]
async fn limits_can_be_changed_and_are_shown() {
    let world = World::new().await;
    world
        .create(
            "box",
            &["true"],
            json!({"HostConfig": {"NanoCpus": 500_000_000}}),
        )
        .await;
    let change = json!({"Memory": 200 << 20, "RestartPolicy": {"Name": "always"}});
    let (status, answer) = world
        .json("POST", "/containers/box/update", Some(change))
        .await;
    assert_eq!((status, &answer["Warnings"]), (OK, &json!([])));
    let (_, shown) = world.json("GET", "/containers/box/json", None).await;
    assert_eq!(shown["HostConfig"]["Memory"], json!(200 << 20));
    assert_eq!(shown["HostConfig"]["NanoCpus"], json!(1_000_000_000));
    assert_eq!(shown["HostConfig"]["RestartPolicy"]["Name"], "always");
    let bad = world
        .json("POST", "/containers/box/update", Some(json!({"Memory": 1})))
        .await;
    assert_eq!(bad.0, 400);
}

#[tokio::test]
async fn images_are_named_listed_and_kept_while_they_are_used() {
    let world = World::new().await;
    assert_eq!(
        world
            .ask("POST", "/images/test/tag?repo=sample/app&tag=2", None)
            .await
            .0,
        201
    );
    let (_, image) = world.json("GET", "/images/sample/app:2/json", None).await;
    assert_eq!(image["RepoTags"], json!(["sample/app:2", "test:latest"]));
    let id = image["Id"].as_str().unwrap().to_owned();
    let filter = "/images/json?filters=%7B%22reference%22:%5B%22sample/*%22%5D%7D";
    let (_, list) = world.json("GET", filter, None).await;
    assert_eq!(list[0]["RepoTags"], json!(["sample/app:2"]));
    let (_, history) = world
        .json("GET", "/images/sample/app:2/history", None)
        .await;
    assert_eq!(history.as_array().unwrap().len(), 1);

    let (_, gone) = world.json("DELETE", "/images/sample/app:2", None).await;
    assert_eq!(gone, json!([{"Untagged": "sample/app:2"}]));
    let container = world.create("user", &["true"], json!({})).await;
    let (status, answer) = world.json("DELETE", "/images/test", None).await;
    assert_eq!(status, 409);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains(&format!(
            "container {} is using its referenced image",
            &container[..12]
        )),
        "{message}"
    );
    let (_, pruned) = world
        .json(
            "POST",
            "/images/prune?filters=%7B%22dangling%22:%5B%22false%22%5D%7D",
            None,
        )
        .await;
    assert_eq!(pruned["ImagesDeleted"], Value::Null);
    world.ask("DELETE", "/containers/user", None).await;
    let (_, gone) = world.json("DELETE", "/images/test", None).await;
    assert_eq!(gone, json!([{"Untagged": "test:latest"}, {"Deleted": id}]));
}

#[tokio::test]
async fn the_vch_says_what_it_is_and_what_is_used() {
    let world = World::new().await;
    world.run("one", &["sleep", "1000"]).await;
    let (_, info) = world.json("GET", "/info", None).await;
    assert_eq!(info["Name"], "trial");
    assert_eq!(
        (&info["ContainersRunning"], &info["NCPU"]),
        (&json!(1), &json!(4))
    );
    assert_eq!(info["MemTotal"], json!(4096u64 << 20));
    let status = info["DriverStatus"].to_string();
    assert!(
        status.contains("fake") && status.contains("64 MiB of 4.00 GiB in use"),
        "{status}"
    );
    let (_, df) = world.json("GET", "/system/df", None).await;
    assert_eq!(df["Images"][0]["Containers"], 1);
    assert_eq!(df["Containers"].as_array().unwrap().len(), 1);
    let engine = world.endpoint.engine();
    let metrics = engine.metrics().text(engine.port_layer());
    for line in [
        "vch_containers{state=\"running\"} 1",
        "vch_requests_total{route=\"POST /containers/create\",status=\"201\"} 1",
        "vch_request_seconds_count{route=\"GET /info\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
