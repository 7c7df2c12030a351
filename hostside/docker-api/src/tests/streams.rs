use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::world::{OK, World, rest, soon, unframe};

const ATTACH: &str = "stream=1&stdin=1&stdout=1&stderr=1";

#[tokio::test]
async fn attached_before_it_starts_a_client_sees_everything_and_the_status() {
    let world = World::new().await;
    world
        .create(
            "job",
            &["sh", "-c", "echo out; echo err >&2; exit 5"],
            json!({}),
        )
        .await;
    let (mut stream, head) = world
        .hijack(&format!("/v1.47/containers/job/attach?{ATTACH}"), "")
        .await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(
        head.contains("content-type: application/vnd.docker.multiplexed-stream"),
        "{head}"
    );
    assert!(head.contains("upgrade: tcp"), "{head}");
    // Its head is there before the container starts: no end is missed.
    let waiting = world
        .send("POST", "/containers/job/wait?condition=next-exit", None)
        .await;
    assert_eq!(waiting.status(), OK);
    assert_eq!(
        world.ask("POST", "/containers/job/start", None).await.0,
        204
    );
    assert_eq!(
        unframe(&rest(&mut stream).await),
        (b"out\n".to_vec(), b"err\n".to_vec())
    );
    let mut body = waiting.into_body().into_data_stream();
    let line = soon(body.next()).await.unwrap().unwrap();
    assert_eq!(line, "{\"StatusCode\":5}\n");
}

#[tokio::test]
async fn the_end_of_a_client_s_side_is_the_end_of_input_and_output_goes_on() {
    let world = World::new().await;
    world
        .create(
            "pipe",
            &["cat"],
            json!({"OpenStdin": true, "StdinOnce": true}),
        )
        .await;
    let (mut stream, _) = world
        .hijack(&format!("/containers/pipe/attach?{ATTACH}"), "")
        .await;
    world.ask("POST", "/containers/pipe/start", None).await;
    let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let (mut reader, mut writer) = stream.split();
    let mut echoed = Vec::new();
    let write = async {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        soon(reader.read_to_end(&mut echoed)).await.unwrap();
    };
    tokio::join!(write, read);
    assert!(unframe(&echoed) == (data, Vec::new()), "the echo differs");
    assert_eq!(
        world.ask("POST", "/containers/pipe/wait", None).await.1,
        "{\"StatusCode\":0}\n"
    );
}

#[tokio::test]
async fn the_detach_keys_end_the_connection_and_not_the_container() {
    let world = World::new().await;
    world
        .create("tty", &["cat"], json!({"OpenStdin": true, "Tty": true}))
        .await;
    world.ask("POST", "/containers/tty/start", None).await;
    let path = format!("/containers/tty/attach?{ATTACH}&detachKeys=ctrl-a,x");
    let (mut stream, head) = world.hijack(&path, "").await;
    assert!(
        head.to_ascii_lowercase()
            .contains("application/vnd.docker.raw-stream"),
        "{head}"
    );
    stream.write_all(b"hello\n\x01x").await.unwrap();
    let output = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(!output.contains('\x01'), "{output:?}");
    let (_, state) = world.json("GET", "/containers/tty/json", None).await;
    assert_eq!(state["State"]["Running"], true);
    let events = world.ask("GET", "/events?since=1&until=0.1", None).await;
    assert_eq!(events.0, 400, "since after until was taken");
    let (_, events) = world
        .ask(
            "GET",
            &format!(
                "/events?until={}",
                crate::time::rfc3339(std::time::SystemTime::now())
            ),
            None,
        )
        .await;
    assert!(events.contains("\"Action\":\"detach\""), "{events}");
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_nothing_behind() {
    let world = World::new().await;
    world.run("quiet", &["sleep", "1000"]).await;
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    for path in [
        "/containers/quiet/attach?stream=1&stdout=1",
        "/containers/quiet/logs?follow=1&stdout=1",
        "/containers/quiet/wait",
        "/events",
        "/containers/quiet/stats",
    ] {
        let method = if path.contains("logs") || path.contains("events") || path.contains("stats") {
            "GET"
        } else {
            "POST"
        };
        let mut stream = world.connect();
        let upgrade = if path.contains("attach") {
            "Connection: Upgrade\r\nUpgrade: tcp\r\n"
        } else {
            ""
        };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: vch\r\n{upgrade}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        soon(stream.read_exact(&mut head)).await.unwrap();
        assert!(head == *b"HTTP/1.1 200" || head == *b"HTTP/1.1 101");
        drop(stream);
        let settled = async {
            while tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
                > before
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            timeout(Duration::from_secs(10), settled).await.is_ok(),
            "{path} left a task behind"
        );
    }
}

#[tokio::test]
async fn an_exec_has_streams_and_a_status_of_its_own() {
    let world = World::new().await;
    world.run("host", &["sleep", "1000"]).await;
    let make = async |config: Value| {
        let (status, answer) = world
            .json("POST", "/containers/host/exec", Some(config))
            .await;
        assert_eq!(status, 201, "{answer}");
        answer["Id"].as_str().unwrap().to_owned()
    };
    let both = json!({"AttachStdout": true, "AttachStderr": true});
    let with = |command: &[&str]| {
        let mut config = both.clone();
        config["Cmd"] = json!(command);
        config
    };
    let cases: [(&[&str], &str, i64); 3] = [
        (&["sh", "-c", "echo hi; exit 9"], "hi\n", 9),
        (&["true"], "", 0),
        (&["no-such-program"], "executable file not found", 127),
    ];
    for (command, output, code) in cases {
        let id = make(with(command)).await;
        let (mut stream, head) = world.hijack(&format!("/exec/{id}/start"), "{}").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let (stdout, stderr) = unframe(&rest(&mut stream).await);
        let stdout = String::from_utf8(stdout).unwrap();
        assert!(stdout.contains(output) && stderr.is_empty(), "{stdout:?}");
        let (_, shown) = world.json("GET", &format!("/exec/{id}/json"), None).await;
        assert_eq!(
            (&shown["Running"], &shown["ExitCode"]),
            (&json!(false), &json!(code))
        );
        let again = world
            .json("POST", &format!("/exec/{id}/start"), Some(json!({})))
            .await;
        assert_eq!(again.0, 409, "{}", again.1);
    }
    let id = make(with(&["sleep", "1000"])).await;
    let detached = world
        .ask(
            "POST",
            &format!("/exec/{id}/start"),
            Some(json!({"Detach": true})),
        )
        .await;
    assert_eq!(detached.0, OK);
    let (_, shown) = world.json("GET", &format!("/exec/{id}/json"), None).await;
    assert_eq!(
        (&shown["Running"], &shown["ExitCode"]),
        (&json!(true), &Value::Null)
    );
    let (_, container) = world.json("GET", "/containers/host/json", None).await;
    assert_eq!(container["ExecIDs"], json!([id]));
}

#[tokio::test]
async fn logs_are_frames_with_what_was_asked_for() {
    let world = World::new().await;
    world
        .run("log", &["sh", "-c", "echo a; echo b >&2; echo c"])
        .await;
    world.ask("POST", "/containers/log/wait", None).await;
    let read = async |query: &str| {
        let response = world
            .send("GET", &format!("/containers/log/logs?{query}"), None)
            .await;
        assert_eq!(response.status(), OK);
        let body = http_body_util::BodyExt::collect(response.into_body());
        let (stdout, stderr) = unframe(&soon(body).await.unwrap().to_bytes());
        (
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        )
    };
    assert_eq!(
        read("stdout=1&stderr=1").await,
        ("a\nc\n".into(), "b\n".into())
    );
    assert_eq!(read("stdout=1").await, ("a\nc\n".into(), String::new()));
    assert_eq!(read("stdout=1&tail=1").await, ("c\n".into(), String::new()));
    assert_eq!(
        read("stdout=1&tail=0").await,
        (String::new(), String::new())
    );
    assert_eq!(read("stdout=1&follow=1").await.0, "a\nc\n");
    let (stamped, _) = read("stdout=1&timestamps=1&tail=1").await;
    let (stamp, line) = stamped.split_once(' ').unwrap();
    assert_eq!(
        (stamp.len(), line),
        ("2026-01-01T00:00:00.000000000Z".len(), "c\n")
    );
    let (status, answer) = world.json("GET", "/containers/log/logs", None).await;
    assert_eq!(status, 400);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("choose at least one stream")
    );
}

#[tokio::test]
async fn streams_end_with_the_endpoint_and_the_container_runs_on() {
    let world = World::new().await;
    world.run("on", &["sleep", "1000"]).await;
    let (mut stream, _) = world
        .hijack("/containers/on/attach?stream=1&stdout=1", "")
        .await;
    let events = world.send("GET", "/events", None).await;
    world.end.send(true).unwrap();
    assert!(rest(&mut stream).await.is_empty());
    let body = http_body_util::BodyExt::collect(events.into_body());
    soon(body).await.unwrap();
    let port_layer = world.endpoint.engine().port_layer();
    assert!(port_layer.list()[0].state.is_on());
}
