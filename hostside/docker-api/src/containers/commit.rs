//! `POST /commit`: an image of a container.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use portlayer::image::config::{Healthcheck, ImageConfig};
use portlayer::image::reference::Name;
use serde_json::json;
use std::time::SystemTime;

use crate::body;
use crate::containers::config::{Config, clean, environment};
use crate::containers::create::Written;
use crate::containers::ports;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::images::familiar;
use crate::json::{Empty, Words};
use crate::query::Query;
use crate::time;

/// A repository and a tag as two parameters give them.
///
/// # Errors
/// 400: they are none.
pub fn name(repository: &str, tag: &str) -> Result<Option<Name>, ApiError> {
    if repository.is_empty() {
        return Ok(None);
    }
    let name: Name = familiar(repository)
        .parse()
        .map_err(|error| ApiError::invalid(format!("invalid reference format: {error}")))?;
    if name.digest().is_some() {
        return Err(ApiError::invalid("cannot import digest reference"));
    }
    if tag.is_empty() {
        return Ok(Some(name.tagged()));
    }
    format!("{}:{tag}", name.repository())
        .parse()
        .map(Some)
        .map_err(|_| ApiError::invalid(format!("invalid tag format: {tag:?}")))
}

/// `POST /commit` (Engine API 1.24).
///
/// # Errors
/// 400: the name or a change makes no sense. 404: no such container.
pub async fn commit(
    State(engine): State<Engine>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let given: Option<Config> = body::read_json(&headers, body).await?;
    let name = name(query.text("repo"), query.text("tag"))?;
    let container = engine.container(query.text("container"))?;
    let own = Written::of(&container.spec).config;
    let mut config = given.unwrap_or_else(|| own.clone());
    apply(&mut config, query.values("changes"))?;
    config.merge(&own);
    config.check()?;
    let image = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        created: Some(time::rfc3339(SystemTime::now())),
        author: Some(query.text("author").to_owned()).filter(|author| !author.is_empty()),
        config: config.into_image(),
        ..ImageConfig::default()
    };
    // `pause` is taken and does nothing: tether, which reads the files, is in the same VM.
    let port_layer = engine.port_layer().clone();
    let id = to_the_end(async move {
        let committed = port_layer.commit(&container.id, image, name);
        Ok(committed.await?)
    });
    let id = id.await?;
    Ok(body::json(
        StatusCode::CREATED,
        &json!({ "Id": id.to_string() }),
    ))
}

/// Changes a configuration by lines of a Dockerfile (`docker commit --change`, `docker import --change`).
///
/// # Errors
/// 400: an instruction that has no place there, or makes no sense.
pub fn apply<'a>(
    config: &mut Config,
    changes: impl Iterator<Item = &'a str>,
) -> Result<(), ApiError> {
    for line in changes.flat_map(str::lines) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        change(config, &instruction.to_ascii_uppercase(), rest.trim())
            .map_err(|why| ApiError::invalid(format!("dockerfile parse error: {line:?}: {why}")))?;
    }
    Ok(())
}

fn change(config: &mut Config, instruction: &str, rest: &str) -> Result<(), String> {
    if rest.is_empty() {
        return Err(format!("{instruction} requires at least one argument"));
    }
    match instruction {
        "CMD" => config.cmd = Some(command(config, rest)?),
        "ENTRYPOINT" => config.entrypoint = Some(command(config, rest)?),
        "ENV" => {
            let pairs = pairs(rest)?;
            config.env = environment(&config.env, &pairs);
        }
        "LABEL" => {
            for pair in pairs(rest)? {
                let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
                config.labels.insert(name.to_owned(), value.to_owned());
            }
        }
        "EXPOSE" => {
            for text in rest.split_whitespace() {
                let ((first, last), protocol) = ports::port(text).map_err(|error| error.message)?;
                for port in first..=last {
                    let name = format!("{port}/{}", ports::protocol_name(protocol));
                    config.exposed_ports.insert(name, Empty);
                }
            }
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = clean(rest),
        "WORKDIR" => config.working_dir = clean(&format!("{}/{rest}", config.working_dir)),
        "STOPSIGNAL" => {
            crate::signals::parse(rest).map_err(|error| error.to_string())?;
            config.stop_signal = rest.to_owned();
        }
        "VOLUME" => {
            let paths = match list(rest) {
                Some(paths) => paths,
                None => words(rest)?,
            };
            let volumes = config.volumes.get_or_insert_default();
            volumes.extend(paths.into_iter().map(|path| (path, Empty)));
        }
        "ONBUILD" => config
            .on_build
            .get_or_insert_default()
            .push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        other => return Err(format!("{other} is not a valid change command")),
    }
    Ok(())
}

/// A JSON list of texts.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A list as it is; other text is for the shell.
fn command(config: &Config, text: &str) -> Result<Words, String> {
    if let Some(list) = list(text) {
        return Ok(Words(list));
    }
    let mut words = match &config.shell {
        Some(shell) if !shell.0.is_empty() => shell.0.clone(),
        _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
    };
    words.push(text.to_owned());
    Ok(Words(words))
}

/// Words as a Dockerfile has them: quotes keep spaces, a backslash the next character.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// `NAME=VALUE ...`, or the older `NAME VALUE`.
fn pairs(text: &str) -> Result<Vec<String>, String> {
    let words = words(text)?;
    if words.iter().all(|word| word.contains('=')) {
        let nameless = words.iter().any(|word| word.starts_with('='));
        return if nameless {
            Err("a name is empty".to_owned())
        } else {
            Ok(words)
        };
    }
    let (name, value) = text
        .split_once(char::is_whitespace)
        .filter(|(name, _)| !name.contains('='))
        .ok_or("must have the form NAME=VALUE")?;
    Ok(vec![format!("{name}={}", value.trim_start())])
}

fn healthcheck(text: &str) -> Result<Healthcheck, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        });
    }
    let mut check = Healthcheck::default();
    let mut rest = text;
    while rest.starts_with("--") {
        let (option, after) = rest
            .split_once(char::is_whitespace)
            .ok_or("it has no command")?;
        rest = after.trim_start();
        let (name, value) = option.split_once('=').ok_or("an option has no value")?;
        if name == "--retries" {
            check.retries = value.parse().map_err(|_| "--retries is no number")?;
            continue;
        }
        let place = match name {
            "--interval" => &mut check.interval,
            "--timeout" => &mut check.timeout,
            "--start-period" => &mut check.start_period,
            "--start-interval" => &mut check.start_interval,
            _ => return Err(format!("unknown option {name}")),
        };
        *place = time::go_duration(value).ok_or_else(|| format!("{name} is no duration"))?;
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if !kind.eq_ignore_ascii_case("cmd") || command.trim().is_empty() {
        return Err("it must be NONE or CMD and a command".to_owned());
    }
    check.test = match list(command) {
        Some(words) => [vec!["CMD".to_owned()], words].concat(),
        None => vec!["CMD-SHELL".to_owned(), command.trim().to_owned()],
    };
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Result<Config, ApiError> {
        let mut config = Config {
            env: vec!["A=1".into(), "B=2".into()],
            working_dir: "/srv".into(),
            ..Config::default()
        };
        apply(&mut config, lines.iter().copied())?;
        Ok(config)
    }

    #[test]
    fn lines_of_a_dockerfile_change_a_configuration() {
        let config = changed(&[
            "CMD [\"run\", \"now\"]",
            "entrypoint /bin/tool --flag",
            "ENV A=3 C=\"x y\" D=a\\ b",
            "ENV E old form",
            "LABEL one=1 two='2 3'",
            "EXPOSE 80 53/udp 90-91",
            "USER app",
            "WORKDIR data",
            "STOPSIGNAL SIGQUIT",
            "VOLUME [\"/a\", \"/b\"]",
            "VOLUME /c /d",
            "ONBUILD RUN x",
            "HEALTHCHECK --interval=5s --retries=2 CMD curl localhost",
            "# nothing",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap().0, ["run", "now"]);
        assert_eq!(
            config.entrypoint.unwrap().0,
            ["/bin/sh", "-c", "/bin/tool --flag"]
        );
        assert_eq!(config.env, ["A=3", "B=2", "C=x y", "D=a b", "E=old form"]);
        assert_eq!(config.labels["two"], "2 3");
        assert_eq!(
            config.exposed_ports.keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp", "90/tcp", "91/tcp"]
        );
        assert_eq!(config.working_dir, "/srv/data");
        assert_eq!(config.volumes.unwrap().len(), 4);
        let check = config.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl localhost"]);
        assert_eq!((check.interval, check.retries), (5_000_000_000, 2));
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for line in [
            "RUN make",
            "FROM x",
            "CMD",
            "ENV",
            "ENV =x",
            "LABEL \"open",
            "EXPOSE x",
            "STOPSIGNAL x",
            "HEALTHCHECK --interval=x CMD y",
            "HEALTHCHECK y",
            "HEALTHCHECK CMD",
        ] {
            let error = changed(&[line]).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert!(
                error.message.starts_with("dockerfile parse error"),
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn a_name_is_a_repository_and_a_tag() {
        let shown = |repository: &str, tag: &str| {
            name(repository, tag).map(|name| name.map(|name| name.to_string()))
        };
        assert_eq!(shown("", ""), Ok(None));
        assert_eq!(shown("app", ""), Ok(Some("app:latest".into())));
        assert_eq!(shown("app:1", ""), Ok(Some("app:1".into())));
        assert_eq!(shown("app", "2"), Ok(Some("app:2".into())));
        assert!(shown("App", "").is_err());
        assert!(shown("app", "a b").is_err());
    }
}
