//! docker-py and bollard, clients of other families.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::{Context, skip};
use anyhow::{Context as _, Result, bail};
use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CommitContainerOptionsBuilder, CreateContainerOptionsBuilder,
    DownloadFromContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    StatsOptionsBuilder, StopContainerOptionsBuilder, TopOptionsBuilder,
    UploadToContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, body_full};
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-sdk",
        "docker-py runs, attaches, executes, copies, waits, listens and is told what is wrong",
        docker_py,
    )
    .guests_too()
    .guests(2)
    .minutes(6),
    Case::new(
        "docker-sdk",
        "bollard creates, attaches, executes, copies, waits, listens and is told what is wrong",
        bollard,
    )
    .guests_too()
    .guests(2)
    .minutes(6),
];

fn docker_py(t: &Context) -> Result<()> {
    // scripts/test makes an environment with the package in it and says where.
    let Some(python) = std::env::var_os("DOCKER_PY").map(PathBuf::from) else {
        return skip(
            "there is no docker-py: set DOCKER_PY to a python that has it, as scripts/test does",
        );
    };
    let docker = Docker::serve(t)?;
    let script = t
        .environment()
        .source()
        .join("qemu-tests/docker_py/acceptance.py")
        .canonicalize()?;
    let archive = t.file("image.tar");
    let layout = t.environment().sample_layout("busybox");
    let packed = std::process::Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(layout)
        .arg(".")
        .status()?;
    assert!(packed.success());
    let done = docker
        .cmd([script, archive])
        .program(python)
        .variable("PYTHONDONTWRITEBYTECODE", "1")
        .done()?;
    done.status(0);
    let said = done.text();
    assert!(said.ends_with("\ndone\n"), "{said}");
    docker.end()
}

fn bollard(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let socket = docker.socket();
    let socket = socket.to_str().context("the socket's path is no text")?;
    let client = ::bollard::Docker::connect_with_unix(socket, 60, API_DEFAULT_VERSION)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = client.negotiate_version().await?;
        assert_eq!(client.client_version().to_string(), "1.47");
        attached(&client).await?;
        running(&client).await?;
        about(&client).await
    })?;
    docker.end()
}

/// What came on standard output, and on standard error.
async fn both(
    mut output: impl Stream<Item = Result<LogOutput, ::bollard::errors::Error>> + Unpin,
) -> Result<(String, String)> {
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(piece) = output.try_next().await? {
        match piece {
            LogOutput::StdOut { message } => out.push_str(std::str::from_utf8(&message)?),
            LogOutput::StdErr { message } => err.push_str(std::str::from_utf8(&message)?),
            other => bail!("neither output nor error: {other:?}"),
        }
    }
    Ok((out, err))
}

fn words(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(ToString::to_string).collect())
}

/// Status and message of a call that was refused.
fn refused<T: std::fmt::Debug>(answer: Result<T, ::bollard::errors::Error>) -> (u16, String) {
    match answer {
        Err(::bollard::errors::Error::DockerResponseServerError {
            status_code,
            message,
        }) => (status_code, message),
        other => panic!("not refused: {other:?}"),
    }
}

/// A container that is attached to before it is started, fed, waited for and read again.
async fn attached(client: &::bollard::Docker) -> Result<()> {
    let options = CreateContainerOptionsBuilder::default().name("fed").build();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: words(&["sh", "-c", "echo started >&2; sort; exit 7"]),
        attach_stdin: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
        ..Default::default()
    };
    let id = client.create_container(Some(options), body).await?.id;
    let options = AttachContainerOptionsBuilder::default()
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .stream(true);
    let mut attached = client
        .attach_container("fed", Some(options.build()))
        .await?;
    client.start_container("fed", None).await?;
    attached.input.write_all(b"b\na\n").await?;
    attached.input.shutdown().await?;
    let (out, err) = both(attached.output).await?;
    assert_eq!((out.as_str(), err.as_str()), ("a\nb\n", "started\n"));
    // Another status than 0 is an error of bollard's, with the status in it.
    let ended = client.wait_container(&id, None).next().await;
    match ended.context("no answer to wait")? {
        Err(::bollard::errors::Error::DockerContainerWaitError { code, .. }) => assert_eq!(code, 7),
        other => panic!("{other:?}"),
    }
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true);
    let logs = both(client.logs("fed", Some(options.build()))).await?;
    assert_eq!(logs, ("a\nb\n".to_owned(), "started\n".to_owned()));
    let state = client.inspect_container("fed", None).await?.state;
    assert_eq!(state.and_then(|state| state.exit_code), Some(7));
    client.remove_container("fed", None).await?;
    let (status, message) = refused(client.inspect_container("fed", None).await);
    assert_eq!((status, message.as_str()), (404, "No such container: fed"));
    Ok(())
}

/// A container that lasts, and everything one does with it.
async fn running(client: &::bollard::Docker) -> Result<()> {
    let named = || {
        CreateContainerOptionsBuilder::default()
            .name("main")
            .build()
    };
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: words(&["sleep", "100000"]),
        labels: Some([("a".to_owned(), "b".to_owned())].into()),
        stop_signal: Some("KILL".to_owned()),
        host_config: Some(HostConfig {
            memory: Some(160 << 20),
            ..Default::default()
        }),
        ..Default::default()
    };
    client.create_container(Some(named()), body.clone()).await?;
    let (status, message) = refused(client.create_container(Some(named()), body).await);
    assert_eq!(status, 409);
    assert!(
        message.contains("is already in use by container"),
        "{message}"
    );
    client.start_container("main", None).await?;

    let exec = ExecConfig {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: words(&["sh", "-c", "echo out; echo err >&2; exit 9"]),
        ..Default::default()
    };
    let exec = client.create_exec("main", exec).await?.id;
    let StartExecResults::Attached { output, .. } = client.start_exec(&exec, None).await? else {
        bail!("the exec is not attached to");
    };
    assert_eq!(
        both(output).await?,
        ("out\n".to_owned(), "err\n".to_owned())
    );
    assert_eq!(client.inspect_exec(&exec).await?.exit_code, Some(9));

    // A file comes back as it went in.
    let options = DownloadFromContainerOptionsBuilder::default().path("/etc/passwd");
    let archive: Vec<_> = client
        .download_from_container("main", Some(options.build()))
        .try_collect()
        .await?;
    let archive = archive.concat();
    let options = UploadToContainerOptionsBuilder::default().path("/tmp");
    client
        .upload_to_container(
            "main",
            Some(options.build()),
            body_full(archive.clone().into()),
        )
        .await?;
    let options = DownloadFromContainerOptionsBuilder::default().path("/tmp/passwd");
    let again: Vec<_> = client
        .download_from_container("main", Some(options.build()))
        .try_collect()
        .await?;
    // The first 512 bytes are its header, and differ in times.
    assert!(archive.len() > 1024, "{} bytes", archive.len());
    assert_eq!(archive[512..1024], again.concat()[512..1024]);

    let options = StatsOptionsBuilder::default().stream(false).build();
    let stats = client.stats("main", Some(options)).next().await;
    let memory = stats.context("no statistics")??.memory_stats;
    assert!(
        memory
            .and_then(|memory| memory.usage)
            .is_some_and(|used| used > 0)
    );
    let options = TopOptionsBuilder::default().ps_args("-o pid,args").build();
    let top = client.top_processes("main", Some(options)).await?;
    let rows = top.processes.unwrap_or_default().concat();
    assert!(rows.iter().any(|cell| cell == "sleep 100000"), "{rows:?}");

    let filters = std::collections::HashMap::from([("label", vec!["a=b"])]);
    let options = ListContainersOptionsBuilder::default().filters(&filters);
    let listed = client.list_containers(Some(options.build())).await?;
    assert_eq!(listed.len(), 1);
    client.pause_container("main").await?;
    client.unpause_container("main").await?;
    let options = StopContainerOptionsBuilder::default().t(1).build();
    client.stop_container("main", Some(options)).await?;
    let options = CommitContainerOptionsBuilder::default()
        .container("main")
        .repo("made/bollard")
        .tag("one");
    let image = client
        .commit_container(
            options.build(),
            ::bollard::models::ContainerConfig::default(),
        )
        .await?;
    let made = client.inspect_image("made/bollard:one").await?.id;
    assert_eq!(made.as_deref(), Some(image.id.as_str()));
    client
        .remove_image("made/bollard:one", None::<RemoveImageOptions>, None)
        .await?;
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container("main", Some(options)).await?;
    Ok(())
}

/// The endpoint itself, and what it tells of the rest.
async fn about(client: &::bollard::Docker) -> Result<()> {
    assert_eq!(client.ping().await?, "OK");
    assert_eq!(client.version().await?.os.as_deref(), Some("linux"));
    assert!(
        client
            .info()
            .await?
            .mem_total
            .is_some_and(|bytes| bytes > 0)
    );
    assert_eq!(
        client.list_images(None::<ListImagesOptions>).await?.len(),
        1
    );
    let options = EventsOptionsBuilder::default().since("0").until("1");
    assert_eq!(client.events(Some(options.build())).count().await, 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let until = (now.as_secs() + 1).to_string();
    let options = EventsOptionsBuilder::default().since("0").until(&until);
    let events: Vec<_> = client.events(Some(options.build())).try_collect().await?;
    let actions: Vec<_> = events
        .into_iter()
        .filter_map(|event| event.action)
        .collect();
    for action in [
        "create", "start", "die", "pause", "stop", "commit", "destroy",
    ] {
        assert!(
            actions.iter().any(|told| told == action),
            "no {action} in {actions:?}"
        );
    }
    let volume = client.create_volume(VolumeCreateRequest::default()).await;
    let (status, message) = refused(volume);
    assert_eq!(status, 501, "{message}");
    Ok(())
}
