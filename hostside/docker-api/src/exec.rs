//! Further processes in running containers: `/containers/{id}/exec` and `/exec/...`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use portlayer::spec::{ProcessSpec, Stdin, Stdio, TerminalSize, User};
use portlayer::{Container, Error, ExecId, ExecState, State as ContainerState, Wanted, WrongState};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::body;
use crate::containers::config::environment;
use crate::containers::create::stdio;
use crate::containers::lifecycle::size;
use crate::detach_keys::DetachKeys;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::hijack::{End, Hijack, Session, Source};
use crate::json::engine_object;
use crate::query::Query;
use crate::version::ApiVersion;

engine_object! {
    /// An exec to be made (`ExecConfig`, Engine API 1.47).
    ExecConfig {
        /// Whether input is attached.
        attach_stdin: bool,
        /// Whether output is attached.
        attach_stdout: bool,
        /// Whether errors are attached.
        attach_stderr: bool,
        /// Lines and characters a line; since 1.42.
        console_size: Option<[u32; 2]>,
        /// Keys to leave it with.
        detach_keys: String,
        /// Whether it has a terminal.
        tty: bool,
        /// `NAME=VALUE`, added to the container's.
        env: Vec<String>,
        /// Program and arguments.
        cmd: Vec<String>,
        /// A VM is.
        privileged: bool,
        /// `USER[:GROUP]`; empty for the container's.
        user: String,
        /// Where it starts; empty for the container's.
        working_dir: String,
    }
}

engine_object! {
    /// How an exec is started (`ExecStartConfig`, Engine API 1.47).
    ExecStart {
        /// Without streams.
        detach: bool,
        /// Whether the client expects a terminal's stream.
        tty: bool,
        /// Lines and characters a line; since 1.42.
        console_size: Option<[u32; 2]>,
    }
}

/// What is written down with an exec, to answer `inspect` and to start it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    config: ExecConfig,
}

fn id(text: &str) -> Result<ExecId, ApiError> {
    text.parse()
        .map_err(|_| Error::NoSuchExec(text.to_owned()).into())
}

/// Why nothing can be run in a container that does not run.
fn not_running(container: &Container) -> ApiError {
    let state = match container.state {
        ContainerState::Paused(_) => WrongState::Paused(container.id),
        ContainerState::Restarting { .. } => WrongState::Restarting(container.id),
        _ => WrongState::NotRunning(container.id),
    };
    Error::from(state).into()
}

/// `POST /containers/{id}/exec` (Engine API 1.24).
///
/// # Errors
/// 400: no command. 404: no such container. 409: it does not run, or is paused.
pub async fn create(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let mut config: ExecConfig = body::read_json(&headers, body).await?.unwrap_or_default();
    if config.cmd.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    if version < ApiVersion::new(1, 42) {
        config.console_size = None;
    }
    DetachKeys::parse(&config.detach_keys).map_err(|_| {
        ApiError::invalid(format!(
            "Invalid escape keys ({}) provided",
            config.detach_keys
        ))
    })?;
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    let container = engine.container(&name)?;
    if !matches!(container.state, ContainerState::Running(_)) {
        return Err(not_running(&container));
    }
    let main = &container.spec.process;
    let own = |text: &str, main: &str| {
        let text = if text.is_empty() { main } else { text };
        text.to_owned()
    };
    let process = ProcessSpec {
        argv: config.cmd.clone(),
        env: environment(&main.env, &config.env),
        cwd: own(&config.working_dir, &main.cwd),
        user: User {
            user: own(&config.user, &main.user.user),
            groups: main.user.groups.clone(),
        },
        stdio: stdio(config.tty, config.console_size.unwrap_or_default()),
        stdin: if config.attach_stdin {
            Stdin::Once
        } else {
            Stdin::Closed
        },
        limits: main.limits.clone(),
    };
    let written = serde_json::to_value(Written { config }).unwrap_or(Value::Null);
    let exec = engine
        .port_layer()
        .exec_create(&container.id, process, written)
        .await?;
    let answer = json!({ "Id": exec.to_string() });
    Ok(body::json(StatusCode::CREATED, &answer))
}

/// `POST /exec/{id}/start` (Engine API 1.24).
///
/// # Errors
/// 404: no such exec. 409: it was started, or its container does not run.
pub async fn start(
    State(engine): State<Engine>,
    Path(text): Path<String>,
    version: ApiVersion,
    mut request: Request,
) -> Answer {
    let hijack = Hijack::of(&mut request);
    let (parts, body) = request.into_parts();
    let options: ExecStart = body::read_json(&parts.headers, body)
        .await?
        .unwrap_or_default();
    let id = id(&text)?;
    let exec = engine.port_layer().exec_inspect(&id)?;
    if exec.state != ExecState::Created {
        return Err(Error::from(WrongState::ExecStarted(id)).into());
    }
    let written: Written = Written::deserialize(&exec.endpoint).unwrap_or_default();
    let terminal = exec.process.stdio.is_terminal();
    let console = options
        .console_size
        .filter(|_| terminal && version >= ApiVersion::new(1, 42));
    let console = console.and_then(|console| match stdio(true, console) {
        Stdio::Terminal(size) => Some(size),
        Stdio::Pipes => None,
    });
    let port_layer = engine.port_layer().clone();
    if options.detach {
        to_the_end(async move { Ok(port_layer.exec_start(&id, None, console).await?) }).await?;
        return Ok(body::empty(StatusCode::OK));
    }
    let wanted = Wanted {
        stdin: written.config.attach_stdin,
        stdout: written.config.attach_stdout,
        stderr: written.config.attach_stderr,
    };
    let container = engine.port_layer().inspect(&exec.container)?;
    if !matches!(container.state, ContainerState::Running(_)) {
        return Err(not_running(&container));
    }
    let keys = DetachKeys::parse(&written.config.detach_keys)?;
    let starting = {
        let port_layer = port_layer.clone();
        async move { Ok(begin(&port_layer, &id, wanted, console).await) }
    };
    let session = async move {
        let (source, input) = to_the_end(starting)
            .await
            .unwrap_or_else(|error| said(&error.message));
        Session {
            source,
            input,
            keys: terminal.then_some(keys),
        }
    };
    let connected = hijack.connect(
        &engine,
        version,
        terminal,
        session,
        Body::empty(),
        move |end| {
            if end == End::Detached {
                port_layer.detached(&exec.container, Some(&id));
            }
        },
    );
    Ok(connected.await)
}

type Streams = (Source, Option<portlayer::AttachedInput>);

/// A text where a process's output would be.
fn said(text: &str) -> Streams {
    (Source::Text(Some(format!("{text}\r\n").into())), None)
}

/// Starts it. The client has its streams by then, so that a failure is said there; its status is found by
/// inspecting the exec.
async fn begin(
    port_layer: &portlayer::PortLayer,
    id: &ExecId,
    wanted: Wanted,
    console: Option<TerminalSize>,
) -> Streams {
    match port_layer.exec_start(id, Some(wanted), console).await {
        Ok(Some(attachment)) => (Source::Process(attachment.output), attachment.input),
        Ok(None) => (Source::Text(None), None),
        Err(Error::ExecStart {
            status, message, ..
        }) => {
            let message = crate::errors::start_failure(status, &message);
            said(&format!("OCI runtime exec failed: exec failed: {message}"))
        }
        Err(error) => said(&ApiError::from(error).message),
    }
}

/// `POST /exec/{id}/resize` (Engine API 1.24).
///
/// # Errors
/// 400: no size. 404: no such exec. 409: it does not run.
pub async fn resize(
    State(engine): State<Engine>,
    Path(text): Path<String>,
    query: Query,
) -> Answer {
    let size = size(&query)?;
    engine.port_layer().exec_resize(&id(&text)?, size).await?;
    Ok(body::empty(StatusCode::OK))
}

/// `GET /exec/{id}/json` (Engine API 1.24).
///
/// # Errors
/// 404: no such exec.
pub async fn inspect(State(engine): State<Engine>, Path(text): Path<String>) -> Answer {
    let exec = engine.port_layer().exec_inspect(&id(&text)?)?;
    let config = Written::deserialize(&exec.endpoint)
        .unwrap_or_default()
        .config;
    let (running, code, pid) = match exec.state {
        ExecState::Created => (false, None, 0),
        ExecState::Running { pid } => (true, None, pid),
        ExecState::Ended { status } => (false, Some(status), 0),
    };
    let argv = &exec.process.argv;
    Ok(body::ok(&json!({
        "ID": exec.id.to_string(),
        "Running": running,
        "ExitCode": code,
        "ProcessConfig": {
            "tty": config.tty,
            "entrypoint": argv.first(),
            "arguments": argv.get(1..).unwrap_or_default(),
            "privileged": config.privileged,
            "user": config.user,
        },
        "OpenStdin": config.attach_stdin,
        "OpenStdout": config.attach_stdout,
        "OpenStderr": config.attach_stderr,
        "CanRemove": !running && code.is_some(),
        "ContainerID": exec.container.to_string(),
        "DetachKeys": config.detach_keys,
        "Pid": pid,
    })))
}
