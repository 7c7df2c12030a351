//! From words to fields (XCU 2.6): parameters, substitutions, splitting, file
//! names.

use std::sync::Arc;

use super::arithmetic::{Variables, evaluate};
use super::pattern::{Marked, is_pattern, matches};
use super::syntax::{Node, Operation, Part, Word};
use super::{Leave, Shell};

/// Deepest directory levels of one pattern.
const MOST_FIELDS: usize = 100_000;

/// Fields as they grow: each character with whether it was quoted.
#[derive(Default)]
struct Fields {
    done: Vec<Vec<Marked>>,
    current: Option<Vec<Marked>>,
}

impl Fields {
    fn plain(&mut self, text: &str) {
        self.current
            .get_or_insert_default()
            .extend(text.chars().map(|c| (c, true)));
    }

    fn literal(&mut self, text: &str) {
        self.current
            .get_or_insert_default()
            .extend(text.chars().map(|c| (c, false)));
    }

    fn end(&mut self) {
        self.done.extend(self.current.take());
    }

    /// Splits at separators; those that are white space go together.
    fn split(&mut self, text: &str, separators: &str) {
        let mut after_space = false;
        for c in text.chars() {
            if !separators.contains(c) {
                self.current.get_or_insert_default().push((c, false));
                after_space = false;
            } else if c.is_ascii_whitespace() {
                self.end();
                after_space = true;
            } else if after_space && self.current.is_none() {
                after_space = false;
            } else {
                self.current.get_or_insert_default();
                self.end();
            }
        }
    }
}

impl Variables for Shell {
    fn get(&self, name: &str) -> String {
        Self::get(self, name).unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: String) {
        self.assign(name, value);
    }
}

/// A parameter's value.
enum Value {
    None,
    One(String),
    /// Of `$@` and `$*`.
    Many(Vec<String>),
}

impl Shell {
    /// Words as the fields of a command.
    pub(super) async fn fields(&mut self, words: &[Word]) -> Result<Vec<String>, Leave> {
        let mut all = Vec::new();
        for word in words {
            // What most words are.
            if let [Part::Text(text)] = word.as_slice()
                && !text.contains(['*', '?', '[', '~'])
            {
                all.push(text.clone());
                continue;
            }
            let mut fields = Fields::default();
            self.expand(word, &mut fields, true).await?;
            fields.end();
            for field in fields.done {
                if is_pattern(&field) && !self.options.no_patterns {
                    let names = self.file_names(&field);
                    if !names.is_empty() {
                        all.extend(names);
                        continue;
                    }
                }
                all.push(field.into_iter().map(|(c, _)| c).collect());
            }
            if all.len() > MOST_FIELDS {
                return Err(self.fail("argument list too long").await);
            }
        }
        Ok(all)
    }

    /// A word as one text: of an assignment, a redirection, a here-document.
    pub(super) async fn text(&mut self, word: &Word) -> Result<String, Leave> {
        Ok(self
            .marked(word)
            .await?
            .into_iter()
            .map(|(c, _)| c)
            .collect())
    }

    /// A word as a pattern.
    pub(super) async fn marked(&mut self, word: &Word) -> Result<Vec<Marked>, Leave> {
        let mut fields = Fields::default();
        self.expand(word, &mut fields, false).await?;
        fields.end();
        Ok(fields.done.join(&(' ', true)))
    }

    async fn fail(&mut self, what: &str) -> Leave {
        self.complain(what).await;
        self.status = if what.contains("divide") { 2 } else { 1 };
        if !self.interactive {
            self.status = 2;
        }
        Leave::Exit
    }

    fn expand<'a>(
        &'a mut self,
        word: &'a Word,
        fields: &'a mut Fields,
        splits: bool,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Leave>> + Send + 'a>> {
        Box::pin(async move {
            for (index, part) in word.iter().enumerate() {
                match part {
                    Part::Text(text) => {
                        let mut text = text.as_str();
                        if index == 0 && text.starts_with('~') {
                            let end = text.find('/').unwrap_or(text.len());
                            // A user's home, but for the own one, is not known.
                            if end == 1 && (end < text.len() || word.len() == 1) {
                                fields.plain(&self.get("HOME").unwrap_or_default());
                                text = &text[end..];
                            }
                        }
                        fields.literal(text);
                    }
                    Part::Quoted(text) => fields.plain(text),
                    Part::Command { script, quoted } => {
                        let output = self.output_of(script).await?;
                        self.put(&output, *quoted, fields, splits);
                    }
                    Part::Arithmetic { expression, quoted } => {
                        let expression = self.text(expression).await?;
                        match evaluate(&expression, self) {
                            Ok(value) => self.put(&value.to_string(), *quoted, fields, splits),
                            Err(what) => return Err(self.fail(&what).await),
                        }
                    }
                    Part::Parameter {
                        name,
                        operation,
                        quoted,
                    } => {
                        self.parameter(name, operation, *quoted, fields, splits)
                            .await?;
                    }
                }
            }
            Ok(())
        })
    }

    fn separators(&self) -> String {
        self.get("IFS").unwrap_or_else(|| " \t\n".into())
    }

    fn put(&self, text: &str, quoted: bool, fields: &mut Fields, splits: bool) {
        if quoted {
            fields.plain(text);
        } else if splits {
            fields.split(text, &self.separators());
        } else {
            fields.literal(text);
        }
    }

    fn put_value(
        &self,
        value: &Value,
        name: &str,
        quoted: bool,
        fields: &mut Fields,
        splits: bool,
    ) {
        match value {
            Value::None => self.put("", quoted, fields, splits),
            Value::One(text) => self.put(text, quoted, fields, splits),
            Value::Many(all) if quoted && name == "*" || !splits => {
                let separators = self.separators();
                let between = separators.chars().next().map(String::from);
                self.put(
                    &all.join(&between.unwrap_or_default()),
                    quoted,
                    fields,
                    splits,
                );
            }
            Value::Many(all) => {
                for (index, one) in all.iter().enumerate() {
                    if index > 0 {
                        fields.end();
                    }
                    self.put(one, quoted, fields, splits);
                }
            }
        }
    }

    fn value(&self, name: &str) -> Value {
        let one = |text: String| Value::One(text);
        match name {
            "@" | "*" => Value::Many(self.parameters.clone()),
            "#" => one(self.parameters.len().to_string()),
            "?" => one(self.status.to_string()),
            "$" => one(self.own_pid.to_string()),
            "!" => self
                .background
                .map_or(Value::None, |pid| one(pid.to_string())),
            "-" => one(self.options.letters()),
            "0" => one(self.name.clone()),
            _ => match name.parse::<usize>() {
                Ok(number) => self
                    .parameters
                    .get(number.wrapping_sub(1))
                    .cloned()
                    .map_or(Value::None, one),
                Err(_) => self.get(name).map_or(Value::None, one),
            },
        }
    }

    async fn parameter(
        &mut self,
        name: &str,
        operation: &Operation,
        quoted: bool,
        fields: &mut Fields,
        splits: bool,
    ) -> Result<(), Leave> {
        let value = self.value(name);
        let counts = |none_if_empty: bool| match &value {
            Value::None => false,
            Value::One(text) => !none_if_empty || !text.is_empty(),
            Value::Many(all) => !all.is_empty(),
        };
        if let (Value::None, true) = (&value, self.options.no_unset)
            && matches!(
                operation,
                Operation::Value
                    | Operation::Length
                    | Operation::CutStart(..)
                    | Operation::CutEnd(..)
            )
        {
            return Err(self.fail(&format!("{name}: parameter not set")).await);
        }
        match operation {
            // `"$@"` of nothing is no field at all.
            Operation::Value => {
                let nothing = match &value {
                    Value::Many(all) => all.is_empty() && name == "@",
                    Value::None => !quoted,
                    Value::One(_) => false,
                };
                if nothing {
                    // `""` beside it was put there for the quotes alone.
                    if fields.current.as_ref().is_some_and(Vec::is_empty) && quoted {
                        fields.current = None;
                    }
                } else {
                    self.put_value(&value, name, quoted, fields, splits);
                }
            }
            Operation::Length => {
                let length = match &value {
                    Value::None => 0,
                    Value::One(text) => text.chars().count(),
                    Value::Many(all) => all.len(),
                };
                self.put(&length.to_string(), quoted, fields, splits);
            }
            Operation::Default(word, colon) => {
                if counts(*colon) {
                    self.put_value(&value, name, quoted, fields, splits);
                } else {
                    self.expand(word, fields, splits).await?;
                }
            }
            Operation::Assign(word, colon) => {
                if counts(*colon) {
                    self.put_value(&value, name, quoted, fields, splits);
                } else {
                    let text = self.text(word).await?;
                    self.assign(name, text.clone());
                    self.put(&text, quoted, fields, splits);
                }
            }
            Operation::Alternative(word, colon) => {
                if counts(*colon) {
                    self.expand(word, fields, splits).await?;
                }
            }
            Operation::Require(word, colon) => {
                if !counts(*colon) {
                    let mut what = self.text(word).await?;
                    if what.is_empty() {
                        what = "parameter not set".into();
                    }
                    return Err(self.fail(&format!("{name}: {what}")).await);
                }
                self.put_value(&value, name, quoted, fields, splits);
            }
            Operation::CutStart(word, longest) | Operation::CutEnd(word, longest) => {
                let pattern = self.marked(word).await?;
                let text: Vec<char> = match &value {
                    Value::One(text) => text.chars().collect(),
                    _ => Vec::new(),
                };
                let start = matches!(operation, Operation::CutStart(..));
                let kept = cut(&pattern, &text, start, *longest);
                self.put(&kept, quoted, fields, splits);
            }
        }
        Ok(())
    }

    /// What a script writes, without the newlines at its end.
    async fn output_of(&mut self, script: &Arc<Node>) -> Result<String, Leave> {
        let Ok((reader, writer)) = self.sys.pipe() else {
            return Err(Leave::Exit);
        };
        let parent = self.clone();
        let script = script.clone();
        let child = self.sys.fork(|sys| {
            let mut shell = parent.child(sys);
            Box::pin(async move {
                let _ = shell.sys.duplicate(writer, 1);
                shell.sys.close(reader);
                shell.sys.close(writer);
                let _ = shell.eval(&script, true).await;
                shell.end().await
            })
        });
        self.sys.close(writer);
        let output = self.sys.read_all(reader).await.unwrap_or_default();
        self.sys.close(reader);
        self.sys.free(output.len() as u64);
        if let Ok(child) = child {
            self.status = self.wait_for(child).await;
        }
        let text = String::from_utf8_lossy(&output);
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// The files of a pattern, in order.
    fn file_names(&self, pattern: &[Marked]) -> Vec<String> {
        let mut paths = vec![String::new()];
        let mut components = pattern.split(|(c, _)| *c == '/').peekable();
        if pattern.first().is_some_and(|(c, _)| *c == '/') {
            components.next();
            paths = vec!["/".into()];
        }
        while let Some(component) = components.next() {
            let last = components.peek().is_none();
            let mut next = Vec::new();
            for path in &paths {
                let join = |name: &str| {
                    if path.is_empty() || path.ends_with('/') {
                        format!("{path}{name}")
                    } else {
                        format!("{path}/{name}")
                    }
                };
                if !is_pattern(component) {
                    let name: String = component.iter().map(|(c, _)| *c).collect();
                    let joined = join(&name);
                    if name.is_empty() || self.sys.stat(&joined, false).is_ok() {
                        next.push(joined);
                    }
                    continue;
                }
                let directory = if path.is_empty() { "." } else { path.as_str() };
                for name in self.sys.list(directory).unwrap_or_default() {
                    let hidden =
                        name.starts_with('.') && component.first().is_none_or(|(c, _)| *c != '.');
                    let chars: Vec<char> = name.chars().collect();
                    if hidden || !matches(component, &chars) {
                        continue;
                    }
                    let joined = join(&name);
                    let is_directory = || {
                        self.sys
                            .stat(&joined, true)
                            .is_ok_and(|stat| stat.node.is_directory())
                    };
                    if last || is_directory() {
                        next.push(joined);
                    }
                }
            }
            paths = next;
        }
        paths
    }
}

/// What is left when a pattern is cut off one end.
fn cut(pattern: &[Marked], text: &[char], start: bool, longest: bool) -> String {
    let length = text.len();
    // Lengths of what is cut, the wanted kind first.
    let mut sizes: Vec<usize> = (0..=length).collect();
    if longest {
        sizes.reverse();
    }
    for size in sizes {
        let (off, kept) = if start {
            (&text[..size], &text[size..])
        } else {
            (&text[length - size..], &text[..length - size])
        };
        if matches(pattern, off) {
            return kept.iter().collect();
        }
    }
    text.iter().collect()
}
