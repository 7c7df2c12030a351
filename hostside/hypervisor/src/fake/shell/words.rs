//! Reading words: quotes, parameters, substitutions (XCU 2.2, 2.6).

use std::sync::Arc;

use super::parser::{Bad, Parser};
use super::syntax::{Node, Operation, Part, Word};

type Result<T> = std::result::Result<T, Bad>;

/// What a word is made of so far.
#[derive(Default)]
struct Parts(Word);

impl Parts {
    fn text(&mut self, c: char) {
        match self.0.last_mut() {
            Some(Part::Text(text)) => text.push(c),
            _ => self.0.push(Part::Text(c.into())),
        }
    }

    fn quoted(&mut self, c: char) {
        match self.0.last_mut() {
            Some(Part::Quoted(text)) => text.push(c),
            _ => self.0.push(Part::Quoted(c.into())),
        }
    }
}

impl Parser {
    /// The next word; nothing where an operator or the end is.
    pub(super) fn word(&mut self) -> Result<Option<Word>> {
        self.word_until(|c| c.is_whitespace() || ";&|()<>".contains(c))
    }

    fn word_until(&mut self, ends: impl Fn(char) -> bool) -> Result<Option<Word>> {
        let start = self.at;
        let mut parts = Parts::default();
        while let Some(c) = self.peek() {
            match c {
                c if ends(c) => break,
                '\'' => {
                    self.at += 1;
                    // Even an empty one makes a word.
                    parts.0.push(Part::Quoted(String::new()));
                    loop {
                        match self.next_char()? {
                            '\'' => break,
                            c => parts.quoted(c),
                        }
                    }
                }
                '"' => {
                    self.at += 1;
                    parts.0.push(Part::Quoted(String::new()));
                    parts.0.extend(self.double_quoted(Some('"'))?);
                    self.next_char()?;
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(c) => {
                            self.at += 1;
                            parts.quoted(c);
                        }
                        None => parts.text('\\'),
                    }
                }
                '$' => self.dollar(&mut parts, false)?,
                '`' => {
                    let part = self.backquoted(false)?;
                    parts.0.push(part);
                }
                c => {
                    self.at += 1;
                    parts.text(c);
                }
            }
        }
        Ok((self.at > start).then_some(parts.0))
    }

    fn next_char(&mut self) -> Result<char> {
        let c = self.peek().ok_or(Bad::Unfinished)?;
        self.at += 1;
        Ok(c)
    }

    /// What is between double quotes, up to `end`, which stays; without one, a
    /// here-document to the end of the text.
    pub(super) fn double_quoted(&mut self, end: Option<char>) -> Result<Word> {
        let mut parts = Parts::default();
        loop {
            match self.peek() {
                None if end.is_none() => return Ok(parts.0),
                None => return Err(Bad::Unfinished),
                c if c == end => return Ok(parts.0),
                Some('\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(c) if "$`\\".contains(c) || (c == '"' && end.is_some()) => {
                            self.at += 1;
                            parts.quoted(c);
                        }
                        _ => parts.quoted('\\'),
                    }
                }
                Some('$') => self.dollar(&mut parts, true)?,
                Some('`') => {
                    let part = self.backquoted(true)?;
                    parts.0.push(part);
                }
                Some(c) => {
                    self.at += 1;
                    parts.quoted(c);
                }
            }
        }
    }

    fn backquoted(&mut self, quoted: bool) -> Result<Part> {
        self.at += 1;
        let mut inner = String::new();
        loop {
            match self.next_char()? {
                '`' => break,
                '\\' => match self.next_char()? {
                    c if "$`\\".contains(c) => inner.push(c),
                    c => inner.extend(['\\', c]),
                },
                c => inner.push(c),
            }
        }
        Ok(Part::Command {
            script: super::parser::parse(&inner)?,
            quoted,
        })
    }

    fn dollar(&mut self, parts: &mut Parts, quoted: bool) -> Result<()> {
        self.deeper()?;
        let read = self.substitution(parts, quoted);
        self.depth -= 1;
        read
    }

    fn substitution(&mut self, parts: &mut Parts, quoted: bool) -> Result<()> {
        self.at += 1;
        let part = match self.peek() {
            Some('(') if self.peek_at(1) == Some('(') => self.arithmetic(quoted)?,
            Some('(') => {
                self.at += 1;
                let script = self.list(&[])?;
                if self.next_char()? != ')' {
                    return Err(Bad::Syntax("unexpected word in a substitution".into()));
                }
                Part::Command { script, quoted }
            }
            Some('{') => {
                self.at += 1;
                self.braced(quoted)?
            }
            Some(c) if c.is_ascii_digit() || "@*#?-$!".contains(c) => {
                self.at += 1;
                plain(c.into(), quoted)
            }
            _ => match self.name() {
                Some(name) => plain(name, quoted),
                None => {
                    if quoted {
                        parts.quoted('$');
                    } else {
                        parts.text('$');
                    }
                    return Ok(());
                }
            },
        };
        parts.0.push(part);
        Ok(())
    }

    fn arithmetic(&mut self, quoted: bool) -> Result<Part> {
        let start = self.at;
        self.at += 2;
        let from = self.at;
        let mut open = 0;
        loop {
            match self.next_char()? {
                '(' => open += 1,
                ')' if open > 0 => open -= 1,
                ')' if self.peek() == Some(')') => break,
                ')' => {
                    // `$( (...) ...)` without the space.
                    self.at = start + 1;
                    let script: Arc<Node> = self.list(&[])?;
                    self.next_char()?;
                    return Ok(Part::Command { script, quoted });
                }
                _ => {}
            }
        }
        let inner: String = self.text[from..self.at - 1].iter().collect();
        self.at += 1;
        let expression = Self::new(&inner).double_quoted(None)?;
        Ok(Part::Arithmetic { expression, quoted })
    }

    fn braced(&mut self, quoted: bool) -> Result<Part> {
        let length = self.peek() == Some('#')
            && !matches!(
                self.peek_at(1),
                Some('}' | ':' | '-' | '+' | '=' | '?' | '%') | None
            );
        if length {
            self.at += 1;
        }
        let mut name = String::new();
        if let Some(read) = self.name() {
            name = read;
        } else if let Some(c) = self.peek().filter(|c| "@*#?-$!".contains(*c)) {
            name.push(c);
            self.at += 1;
        } else {
            while let Some(c) = self.peek().filter(char::is_ascii_digit) {
                name.push(c);
                self.at += 1;
            }
        }
        if name.is_empty() {
            return Err(Bad::Syntax("bad substitution".into()));
        }
        if length {
            return if self.next_char()? == '}' {
                Ok(Part::Parameter {
                    name,
                    operation: Operation::Length,
                    quoted,
                })
            } else {
                Err(Bad::Syntax("bad substitution".into()))
            };
        }
        let colon = self.peek() == Some(':');
        if colon {
            self.at += 1;
        }
        let operator = self.next_char()?;
        if operator == '}' && !colon {
            return Ok(plain(name, quoted));
        }
        let longest = "#%".contains(operator) && self.peek() == Some(operator);
        if longest {
            self.at += 1;
        }
        let word = if quoted && !"#%".contains(operator) {
            self.double_quoted(Some('}'))?
        } else {
            self.word_until(|c| c == '}')?.unwrap_or_default()
        };
        if self.next_char()? != '}' {
            return Err(Bad::Syntax("bad substitution".into()));
        }
        let operation = match operator {
            '-' => Operation::Default(word, colon),
            '=' => Operation::Assign(word, colon),
            '+' => Operation::Alternative(word, colon),
            '?' => Operation::Require(word, colon),
            '#' if !colon => Operation::CutStart(word, longest),
            '%' if !colon => Operation::CutEnd(word, longest),
            _ => return Err(Bad::Syntax("bad substitution".into())),
        };
        Ok(Part::Parameter {
            name,
            operation,
            quoted,
        })
    }
}

fn plain(name: String, quoted: bool) -> Part {
    Part::Parameter {
        name,
        operation: Operation::Value,
        quoted,
    }
}
