//! Running commands.

use std::pin::Pin;
use std::sync::Arc;

use super::pattern::matches;
use super::syntax::{Node, Redirection, Word};
use super::{DEEPEST_CALL, Flow, Leave, Shell, builtins};
use crate::fake::files::{Errno, describe};
use crate::fake::kernel::{Access, Pid, signal};
use crate::fake::programs;

type Running<'a> = Pin<Box<dyn Future<Output = Flow> + Send + 'a>>;

impl Shell {
    /// Runs a command. `last` says that the shell ends with it.
    pub(super) fn eval<'a>(&'a mut self, node: &'a Node, last: bool) -> Running<'a> {
        Box::pin(async move {
            self.sys.step().await;
            match node {
                Node::Simple {
                    assignments,
                    words,
                    redirections,
                } => {
                    self.simple(assignments, words, redirections, last).await?;
                    self.run_traps().await?;
                    return self.unless_failed();
                }
                Node::Pipeline { negated, stages } => {
                    if *negated {
                        self.condition += 1;
                    }
                    let flow = if let [stage] = stages.as_slice() {
                        self.eval(stage, false).await
                    } else {
                        self.pipeline(stages).await
                    };
                    if *negated {
                        self.condition -= 1;
                        self.status = u8::from(self.status == 0);
                    }
                    flow?;
                    self.run_traps().await?;
                    if !negated {
                        return self.unless_failed();
                    }
                }
                Node::And(left, right) => {
                    self.decide(left).await?;
                    if self.status == 0 {
                        return self.eval(right, last).await;
                    }
                }
                Node::Or(left, right) => {
                    self.decide(left).await?;
                    if self.status != 0 {
                        return self.eval(right, last).await;
                    }
                }
                Node::Sequence(commands) => {
                    for (index, command) in commands.iter().enumerate() {
                        self.eval(command, last && index + 1 == commands.len())
                            .await?;
                    }
                }
                Node::Background(command) => self.background(command).await,
                Node::If { arms, otherwise } => {
                    for (condition, body) in arms {
                        self.decide(condition).await?;
                        if self.status == 0 {
                            return self.eval(body, last).await;
                        }
                    }
                    self.status = 0;
                    if let Some(otherwise) = otherwise {
                        return self.eval(otherwise, last).await;
                    }
                }
                Node::While {
                    until,
                    condition,
                    body,
                } => return self.while_loop(*until, condition, body).await,
                Node::For { name, words, body } => {
                    let fields = match words {
                        Some(words) => self.fields(words).await?,
                        None => self.parameters.clone(),
                    };
                    self.status = 0;
                    for field in fields {
                        self.assign(name, field);
                        if self.round(body).await? {
                            break;
                        }
                    }
                }
                Node::Case { word, arms } => {
                    let text: Vec<char> = self.text(word).await?.chars().collect();
                    self.status = 0;
                    for (patterns, body) in arms {
                        for pattern in patterns {
                            let pattern = self.marked(pattern).await?;
                            if matches(&pattern, &text) {
                                return self.eval(body, last).await;
                            }
                        }
                    }
                }
                Node::Group(body) => return self.eval(body, last).await,
                Node::Subshell(body) => {
                    if last && self.traps.is_empty() {
                        return self.eval(body, true).await.and(Err(Leave::Exit));
                    }
                    let body = body.clone();
                    let child = self.fork_shell(move |mut shell| async move {
                        let _ = shell.eval(&body, true).await;
                        shell.end().await
                    });
                    self.status = match child {
                        Ok(child) => self.foreground(child).await,
                        Err(_) => 1,
                    };
                    self.run_traps().await?;
                    return self.unless_failed();
                }
                Node::Function(name, body) => {
                    self.functions.insert(name.clone(), body.clone());
                    self.status = 0;
                }
                Node::Redirected(body, redirections) => {
                    let (aside, redirected) = self.redirect(redirections).await;
                    let flow = match redirected {
                        Ok(()) => self.eval(body, false).await,
                        Err(leave) => leave.map_or(Ok(()), Err),
                    };
                    self.restore(aside);
                    return flow;
                }
            }
            Ok(())
        })
    }

    /// `set -e`.
    fn unless_failed(&self) -> Flow {
        if self.options.exit_on_error && self.condition == 0 && self.status != 0 {
            Err(Leave::Exit)
        } else {
            Ok(())
        }
    }

    async fn decide(&mut self, condition: &Node) -> Flow {
        self.condition += 1;
        let flow = self.eval(condition, false).await;
        self.condition -= 1;
        flow
    }

    /// A round of a loop: whether it was the last.
    async fn round(&mut self, body: &Node) -> Result<bool, Leave> {
        self.loops += 1;
        let flow = self.eval(body, false).await;
        self.loops -= 1;
        match flow {
            Ok(()) | Err(Leave::Continue(1)) => Ok(false),
            Err(Leave::Break(1)) => Ok(true),
            Err(Leave::Break(more)) => Err(Leave::Break(more - 1)),
            Err(Leave::Continue(more)) => Err(Leave::Continue(more - 1)),
            Err(leave) => Err(leave),
        }
    }

    async fn while_loop(&mut self, until: bool, condition: &Node, body: &Node) -> Flow {
        let mut status = 0;
        loop {
            self.loops += 1;
            let decided = self.decide(condition).await;
            self.loops -= 1;
            match decided {
                Ok(()) => {}
                Err(Leave::Break(1)) => break,
                Err(Leave::Continue(1)) => continue,
                Err(leave) => return Err(leave),
            }
            if (self.status == 0) == until {
                break;
            }
            if self.round(body).await? {
                status = self.status;
                break;
            }
            status = self.status;
        }
        self.status = status;
        Ok(())
    }

    /// A child that runs a shell like this one.
    fn fork_shell<F: Future<Output = u8> + Send + 'static>(
        &self,
        run: impl FnOnce(Self) -> F,
    ) -> Result<Pid, Errno> {
        let parent = self.clone();
        let child = self.sys.fork(|sys| Box::pin(run(parent.child(sys))))?;
        if self.interactive {
            self.lead(child, child);
        }
        Ok(child)
    }

    /// With job control each job is a process group of its own.
    fn lead(&self, child: Pid, group: Pid) {
        if let Some(process) = self.sys.kernel().processes.get_mut(&child) {
            process.group = group;
            for number in [signal::INT, signal::QUIT, signal::TERM, signal::TSTP] {
                process.dispositions.remove(&number);
            }
        }
    }

    fn give_terminal(&self, group: Pid) {
        if !self.interactive {
            return;
        }
        if let Some(number) = self.sys.terminal_of(0)
            && let Some(terminal) = self.sys.kernel().terminal(number)
        {
            terminal.foreground = group;
        }
    }

    /// Waits for a child, the terminal being its own meanwhile.
    async fn foreground(&mut self, child: Pid) -> u8 {
        self.give_terminal(child);
        let status = self.wait_for(child).await;
        self.give_terminal(self.sys.pid);
        status
    }

    async fn background(&mut self, command: &Arc<Node>) {
        let command = command.clone();
        let interactive = self.interactive;
        let child = self.fork_shell(move |mut shell| async move {
            if !interactive {
                // It shares no input with those in front (XCU 2.9.3).
                if let Ok(null) = shell.sys.open("/dev/null", Access::READ).await {
                    let _ = shell.sys.duplicate(null, 0);
                    shell.sys.close(null);
                }
                for number in [signal::INT, signal::QUIT] {
                    let ignore = Some(crate::fake::kernel::Disposition::Ignore);
                    shell.sys.set_disposition(number, ignore);
                }
            }
            let _ = shell.eval(&command, true).await;
            shell.end().await
        });
        self.status = 0;
        if let Ok(child) = child {
            self.background = Some(child);
            self.jobs.push(child);
        }
    }

    async fn pipeline(&mut self, stages: &[Arc<Node>]) -> Flow {
        let mut children = Vec::new();
        let mut input: Option<u32> = None;
        for (index, stage) in stages.iter().enumerate() {
            let pipe = if index + 1 < stages.len() {
                self.sys.pipe().ok()
            } else {
                None
            };
            let stage = stage.clone();
            let child = self.fork_shell(move |mut shell| async move {
                if let Some(input) = input {
                    let _ = shell.sys.duplicate(input, 0);
                    shell.sys.close(input);
                }
                if let Some((reader, writer)) = pipe {
                    let _ = shell.sys.duplicate(writer, 1);
                    shell.sys.close(writer);
                    shell.sys.close(reader);
                }
                let _ = shell.eval(&stage, true).await;
                shell.end().await
            });
            if let Some(input) = input.take() {
                self.sys.close(input);
            }
            if let Some((reader, writer)) = pipe {
                self.sys.close(writer);
                input = Some(reader);
            }
            if let Ok(child) = child {
                if self.interactive {
                    self.lead(child, children.first().copied().unwrap_or(child));
                }
                children.push(child);
            }
        }
        if let Some(first) = children.first() {
            self.give_terminal(*first);
        }
        let mut failed = 0;
        for child in children {
            self.status = self.wait_for(child).await;
            if self.status != 0 {
                failed = self.status;
            }
        }
        if self.options.pipefail {
            self.status = failed;
        }
        self.give_terminal(self.sys.pid);
        Ok(())
    }

    async fn simple(
        &mut self,
        assignments: &[(String, Word)],
        words: &[Word],
        redirections: &[Redirection],
        last: bool,
    ) -> Flow {
        let before = self.status;
        let fields = self.fields(words).await?;
        let mut values = Vec::new();
        let mut substituted = false;
        for (name, word) in assignments {
            substituted |= word
                .iter()
                .any(|part| matches!(part, super::syntax::Part::Command { .. }));
            let value = self.text(word).await?;
            // A later assignment sees an earlier one.
            if fields.is_empty() {
                self.assign_checked(name, value.clone()).await?;
            }
            values.push((name.clone(), value));
        }
        if self.options.trace {
            self.trace(&values, &fields).await;
        }
        let Some(name) = fields.first().cloned() else {
            if !substituted && words.is_empty() {
                self.status = 0;
            }
            let (aside, redirected) = self.redirect(redirections).await;
            self.restore(aside);
            return match redirected {
                Err(leave) => leave.map_or(Ok(()), Err),
                Ok(()) => Ok(()),
            };
        };
        if let Some(body) = self.functions.get(&name).cloned() {
            return self.function(&body, fields, values, redirections).await;
        }
        if let Some(builtin) = builtins::find(&name) {
            // What `exec` redirects stays so.
            let keeps = name == "exec";
            let (aside, redirected) = self.redirect(redirections).await;
            let flow = match redirected {
                Err(leave) => leave.map_or(Ok(()), Err),
                Ok(()) => {
                    let saved = if builtins::is_special(&name) {
                        for (name, value) in values {
                            self.assign(&name, value);
                        }
                        Vec::new()
                    } else {
                        self.cover(values)
                    };
                    if matches!(name.as_str(), "exit" | "return") {
                        self.status = before;
                    }
                    let flow = self.builtin(builtin, fields).await;
                    self.uncover(saved);
                    flow
                }
            };
            if keeps && flow.is_ok() && self.status == 0 {
                for (_, aside) in aside {
                    if let Some(aside) = aside {
                        self.sys.close(aside);
                    }
                }
            } else {
                self.restore(aside);
            }
            return flow;
        }
        let mut environment = self.clone();
        for (name, value) in values {
            environment.assign(&name, value);
            if let Some(variable) = environment.variables.get_mut(&name) {
                variable.exported = true;
            }
        }
        let environment = environment.environment();
        if last && self.traps.is_empty() && !self.interactive {
            let (aside, redirected) = self.redirect(redirections).await;
            if let Err(leave) = redirected {
                self.restore(aside);
                return leave.map_or(Ok(()), Err);
            }
            for (_, aside) in aside {
                if let Some(aside) = aside {
                    self.sys.close(aside);
                }
            }
            self.status = self.execute(fields, environment).await;
            return Err(Leave::Exit);
        }
        let redirections = redirections.to_vec();
        let child = self.fork_shell(move |mut shell| async move {
            let (_, redirected) = shell.redirect(&redirections).await;
            match redirected {
                Ok(()) => shell.execute(fields, environment).await,
                Err(_) => shell.status,
            }
        });
        self.status = match child {
            Ok(child) => self.foreground(child).await,
            Err(_) => 1,
        };
        Ok(())
    }

    async fn trace(&self, values: &[(String, String)], fields: &[String]) {
        let values = values.iter().map(|(name, value)| format!("{name}={value}"));
        let line: Vec<String> = values.chain(fields.iter().cloned()).collect();
        let _ = self
            .sys
            .write(2, format!("+ {}\n", line.join(" ")).as_bytes())
            .await;
    }

    async fn assign_checked(&mut self, name: &str, value: String) -> Flow {
        let read_only = self
            .variables
            .get(name)
            .is_some_and(|variable| variable.read_only);
        if read_only {
            self.complain(&format!("{name}: is read only")).await;
            self.status = 2;
            return Err(Leave::Exit);
        }
        self.assign(name, value);
        Ok(())
    }

    /// Assignments for the time of one command; what they cover.
    fn cover(&mut self, values: Vec<(String, String)>) -> Vec<(String, Option<super::Variable>)> {
        let mut saved = Vec::new();
        for (name, value) in values {
            saved.push((name.clone(), self.variables.get(&name).cloned()));
            self.assign(&name, value);
        }
        saved
    }

    fn uncover(&mut self, saved: Vec<(String, Option<super::Variable>)>) {
        for (name, variable) in saved.into_iter().rev() {
            match variable {
                Some(variable) => drop(self.variables.insert(name, variable)),
                None => drop(self.variables.remove(&name)),
            }
        }
    }

    async fn function(
        &mut self,
        body: &Arc<Node>,
        fields: Vec<String>,
        values: Vec<(String, String)>,
        redirections: &[Redirection],
    ) -> Flow {
        if self.calls >= DEEPEST_CALL {
            self.complain("function calls nested too deeply").await;
            self.status = 2;
            return Err(Leave::Exit);
        }
        let (aside, redirected) = self.redirect(redirections).await;
        let mut flow = Ok(());
        match redirected {
            Err(leave) => flow = leave.map_or(Ok(()), Err),
            Ok(()) => {
                let saved = self.cover(values);
                let parameters = std::mem::replace(&mut self.parameters, fields[1..].to_vec());
                let loops = std::mem::take(&mut self.loops);
                self.calls += 1;
                self.locals.push(Vec::new());
                self.status = 0;
                match self.eval(body, false).await {
                    Err(Leave::Return) => {}
                    other => flow = other,
                }
                let locals = self.locals.pop().unwrap_or_default();
                self.uncover(locals);
                self.calls -= 1;
                self.loops = loops;
                self.parameters = parameters;
                self.uncover(saved);
            }
        }
        self.restore(aside);
        flow
    }

    /// Becomes a program, and is it to its end.
    pub(super) async fn execute(&mut self, argv: Vec<String>, environment: Vec<String>) -> u8 {
        let name = argv.first().cloned().unwrap_or_default();
        let search = self.get("PATH").unwrap_or_default();
        let mut denied = None;
        let candidates = if name.contains('/') {
            vec![name.clone()]
        } else {
            search
                .split(':')
                .map(|directory| {
                    if directory.is_empty() {
                        name.clone()
                    } else {
                        format!("{}/{name}", directory.trim_end_matches('/'))
                    }
                })
                .collect()
        };
        for path in candidates {
            match programs::load(&self.sys, &path, argv.clone(), environment.clone()).await {
                Ok(task) => return task.await,
                Err(Errno::NOEXEC) => {
                    let mut script = vec!["sh".to_owned(), path];
                    script.extend(argv[1..].iter().cloned());
                    let shell = programs::load(&self.sys, "/bin/sh", script, environment);
                    if let Ok(task) = shell.await {
                        return task.await;
                    }
                    denied = Some(Errno::NOEXEC);
                    break;
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => denied = Some(errno),
            }
        }
        let (status, why) = match denied {
            Some(errno) => (126, describe(errno)),
            None => (127, "not found"),
        };
        self.complain(&format!("{name}: {why}")).await;
        status
    }

    /// Where a command's name leads, for `type` and `command -v`.
    pub(super) fn find_program(&self, name: &str) -> Option<String> {
        let runs = |path: &str| {
            self.sys
                .stat(path, true)
                .is_ok_and(|stat| !stat.node.is_directory() && stat.node.mode & 0o111 != 0)
        };
        if name.contains('/') {
            return runs(name).then(|| name.to_owned());
        }
        self.get("PATH")
            .unwrap_or_default()
            .split(':')
            .map(|directory| format!("{}/{name}", directory.trim_end_matches('/')))
            .find(|path| runs(path))
    }
}
