use super::*;
use serde_json::{Value, json};

fn config(value: Value) -> Config {
    serde_json::from_value(value).unwrap()
}

#[test]
fn what_is_given_replaces_the_image_s_command_by_docker_s_rules() {
    let image = config(json!({"Entrypoint": ["/entry"], "Cmd": ["default"]}));
    let cases: [(Value, Option<&[&str]>); 8] = [
        (json!({}), Some(&["/entry", "default"])),
        (
            json!({"Cmd": null, "Entrypoint": null}),
            Some(&["/entry", "default"]),
        ),
        (json!({"Cmd": ["own"]}), Some(&["/entry", "own"])),
        (json!({"Cmd": "own"}), Some(&["/entry", "own"])),
        (json!({"Entrypoint": ["/mine"]}), Some(&["/mine"])),
        (
            json!({"Entrypoint": ["/mine"], "Cmd": ["a"]}),
            Some(&["/mine", "a"]),
        ),
        (json!({"Entrypoint": [""], "Cmd": ["sh"]}), Some(&["sh"])),
        (json!({"Entrypoint": [""]}), None),
    ];
    for (given, expected) in cases {
        let shown = given.to_string();
        let mut own = config(given);
        own.merge(&image);
        let argv = own.argv().ok();
        let expected = expected.map(|words| words.iter().map(|w| (*w).to_owned()).collect());
        assert_eq!(argv, expected, "{shown}");
    }
    let mut own = config(json!({}));
    own.merge(&Config::default());
    assert_eq!(own.argv().unwrap_err().message, "no command specified");
}

#[test]
fn lists_and_maps_of_the_image_are_added_to() {
    let image = config(json!({
        "User": "app", "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Env": ["PATH=/bin", "A=1", "GONE=x"],
        "Labels": {"a": "image", "b": "image"}, "Volumes": {"/data": {}}, "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
    }));
    let mut own = config(json!({
        "ExposedPorts": {"80/tcp": {}, "53/udp": null}, "Env": ["A=2", "GONE", "B="], "Labels": {"a": "own"},
        "Volumes": {"/cache": {}},
    }));
    own.merge(&image);
    assert_eq!(own.user, "app");
    assert_eq!(own.working_dir, "/srv");
    assert_eq!(own.stop_signal, "SIGQUIT");
    assert_eq!(
        own.exposed_ports.keys().collect::<Vec<_>>(),
        ["443/tcp", "53/udp", "80/tcp"]
    );
    assert_eq!(own.env, ["A=2", "GONE", "B=", "PATH=/bin"]);
    assert_eq!(own.environment(), ["A=2", "B=", "PATH=/bin"]);
    assert_eq!(own.labels["a"], "own");
    assert_eq!(own.labels["b"], "image");
    assert_eq!(
        own.volumes.unwrap().into_keys().collect::<Vec<_>>(),
        ["/cache", "/data"]
    );

    let mut own = config(json!({"User": "me", "WorkingDir": "/own", "StopSignal": "9"}));
    own.merge(&image);
    assert_eq!(
        (
            own.user.as_str(),
            own.working_dir.as_str(),
            own.stop_signal.as_str()
        ),
        ("me", "/own", "9")
    );
}

#[test]
fn a_health_check_takes_from_the_image_what_it_does_not_say() {
    let image = config(
        json!({"Healthcheck": {"Test": ["CMD-SHELL", "probe"], "Interval": 7_000_000_000i64, "Retries": 5}}),
    );
    let cases = [
        (json!({}), Some((vec!["/bin/sh", "-c", "probe"], 7, 30, 5))),
        (json!({"Healthcheck": {"Test": ["NONE"]}}), None),
        (
            json!({"Healthcheck": {"Test": ["CMD", "own"]}}),
            Some((vec!["own"], 7, 30, 5)),
        ),
        (
            json!({"Healthcheck": {"Timeout": 2_000_000_000}}),
            Some((vec!["/bin/sh", "-c", "probe"], 7, 2, 5)),
        ),
        (
            json!({"Shell": ["/bin/bash", "-ec"]}),
            Some((vec!["/bin/bash", "-ec", "probe"], 7, 30, 5)),
        ),
    ];
    for (given, expected) in cases {
        let shown = given.to_string();
        let mut own = config(given);
        own.merge(&image);
        own.check().unwrap();
        let found = own.health().unwrap().map(|health| {
            (
                health.argv,
                health.interval.as_secs(),
                health.timeout.as_secs(),
                health.retries.get(),
            )
        });
        let expected = expected.map(|(argv, interval, timeout, retries)| {
            (
                argv.into_iter().map(str::to_owned).collect::<Vec<_>>(),
                interval,
                timeout,
                retries,
            )
        });
        assert_eq!(found, expected, "{shown}");
    }
}

#[test]
fn what_no_container_can_be_is_refused() {
    let cases = [
        (
            json!({"StopSignal": "SIGNOTHING"}),
            "invalid signal: SIGNOTHING",
        ),
        (json!({"Env": [""]}), "invalid environment variable: "),
        (json!({"Env": ["=x"]}), "invalid environment variable: =x"),
        (
            json!({"Healthcheck": {"Interval": 5}}),
            "Interval in Healthcheck cannot be less than 1ms",
        ),
        (
            json!({"Healthcheck": {"Retries": -1}}),
            "Retries in Healthcheck cannot be negative",
        ),
    ];
    for (given, words) in cases {
        assert_eq!(config(given).check().unwrap_err().message, words);
    }
    assert!(config(json!({"WorkingDir": "srv"})).directory().is_err());
    assert_eq!(
        config(json!({"WorkingDir": "/a/../b//c/."}))
            .directory()
            .unwrap(),
        "/b/c"
    );
    assert_eq!(config(json!({})).directory().unwrap(), "/");
}

#[test]
fn an_image_s_configuration_survives_the_way_there_and_back() {
    let image = ProcessConfig {
        user: "app".into(),
        exposed_ports: ["80/tcp".to_owned()].into(),
        env: vec!["A=1".into()],
        entrypoint: vec!["/e".into()],
        cmd: vec!["c".into()],
        volumes: ["/v".to_owned()].into(),
        working_dir: "/w".into(),
        labels: [("l".to_owned(), "1".to_owned())].into(),
        stop_signal: "9".into(),
        healthcheck: None,
        shell: vec!["/s".into()],
    };
    assert_eq!(Config::of_image(&image).into_image(), image);
}

#[test]
fn an_environment_is_replaced_and_taken_from() {
    let list = |entries: &[&str]| entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
    let merged = environment(&list(&["A=1", "B=2", "C=3"]), &list(&["B=x=y", "C", "D"]));
    assert_eq!(merged, list(&["A=1", "B=x=y"]));
}
