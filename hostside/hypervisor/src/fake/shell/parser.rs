//! From a script's text to [`Node`]s, by recursive descent (XCU 2.10).

use std::sync::{Arc, OnceLock};

use super::syntax::{Node, Redirection, Target, Word};

/// Deepest nesting: a script cannot exhaust the stack.
const DEEPEST: u32 = 60;

/// Why a text is no script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// It may become one with more lines.
    Unfinished,
    /// It never will; says what was not expected.
    Syntax(String),
}

/// A here-document that was announced: where it goes, what ends it, whether it
/// is expanded, whether tabs are cut.
struct Announced {
    text: Arc<OnceLock<Word>>,
    end: String,
    expands: bool,
    cuts_tabs: bool,
}

/// A reader of scripts.
pub struct Parser {
    pub(super) text: Vec<char>,
    pub(super) at: usize,
    announced: Vec<Announced>,
    pub(super) depth: u32,
}

type Result<T> = std::result::Result<T, Bad>;

const RESERVED: [&str; 15] = [
    "if", "then", "elif", "else", "fi", "while", "until", "for", "do", "done", "case", "esac", "{",
    "}", "!",
];

/// A whole script.
///
/// # Errors
/// As [`Bad`] says.
pub fn parse(text: &str) -> Result<Arc<Node>> {
    let mut parser = Parser::new(text);
    let script = parser.list(&[])?;
    match parser.peek() {
        None => Ok(script),
        Some(_) => Err(parser.unexpected()),
    }
}

impl Parser {
    /// One at the start of this text.
    pub fn new(text: &str) -> Self {
        Self {
            text: text.chars().collect(),
            at: 0,
            announced: Vec::new(),
            depth: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    pub(super) fn peek_at(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    pub(super) fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Bad::Syntax("nested too deeply".into()));
        }
        Ok(())
    }

    fn starts_with(&self, what: &str) -> bool {
        what.chars()
            .enumerate()
            .all(|(ahead, wanted)| self.peek_at(ahead) == Some(wanted))
    }

    fn take(&mut self, what: &str) -> bool {
        let there = self.starts_with(what);
        if there {
            self.at += what.chars().count();
        }
        there
    }

    fn unexpected(&self) -> Bad {
        match self.peek() {
            None => Bad::Unfinished,
            Some('\n') => Bad::Syntax("unexpected newline".into()),
            Some(_) => {
                let word: String = self.text[self.at..]
                    .iter()
                    .take_while(|c| !c.is_whitespace())
                    .take(20)
                    .collect();
                Bad::Syntax(format!("unexpected \"{word}\""))
            }
        }
    }

    /// Spaces, joined lines, comments.
    fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => self.at += 1,
                Some('\\') if self.peek_at(1) == Some('\n') => self.at += 2,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn newline(&mut self) -> Result<()> {
        self.at += 1;
        for announced in std::mem::take(&mut self.announced) {
            self.here_document(&announced)?;
        }
        Ok(())
    }

    fn skip_newlines(&mut self) -> Result<()> {
        loop {
            self.skip_blanks();
            if self.peek() != Some('\n') {
                return Ok(());
            }
            self.newline()?;
        }
    }

    fn here_document(&mut self, announced: &Announced) -> Result<()> {
        let mut body = String::new();
        loop {
            if self.peek().is_none() {
                return Err(Bad::Unfinished);
            }
            let mut line = String::new();
            while let Some(c) = self.peek() {
                self.at += 1;
                if c == '\n' {
                    break;
                }
                line.push(c);
            }
            if announced.cuts_tabs {
                line = line.trim_start_matches('\t').to_owned();
            }
            if line == announced.end {
                break;
            }
            body.push_str(&line);
            body.push('\n');
        }
        let word = if announced.expands {
            Self::new(&body).double_quoted(None)?
        } else {
            vec![super::syntax::Part::Quoted(body)]
        };
        let _ = announced.text.set(word);
        Ok(())
    }

    /// The reserved word that comes next, if one does.
    fn reserved(&mut self) -> Option<&'static str> {
        self.skip_blanks();
        RESERVED.into_iter().find(|word| {
            self.starts_with(word)
                && self
                    .peek_at(word.chars().count())
                    .is_none_or(|c| c.is_whitespace() || ";&|()<>".contains(c))
        })
    }

    fn expect(&mut self, word: &'static str) -> Result<()> {
        self.skip_newlines()?;
        if self.reserved() == Some(word) {
            self.at += word.chars().count();
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Commands up to one of these reserved words, a closing parenthesis, or the
    /// end of the text.
    pub(super) fn list(&mut self, ends: &[&str]) -> Result<Arc<Node>> {
        self.deeper()?;
        let mut commands = Vec::new();
        loop {
            self.skip_newlines()?;
            if matches!(self.peek(), None | Some(')')) || self.starts_with(";;") {
                break;
            }
            if let Some(word) = self.reserved()
                && ends.contains(&word)
            {
                break;
            }
            let command = self.and_or()?;
            self.skip_blanks();
            match self.peek() {
                Some('&') => {
                    self.at += 1;
                    commands.push(Arc::new(Node::Background(command)));
                }
                Some(';') if !self.starts_with(";;") => {
                    self.at += 1;
                    commands.push(command);
                }
                Some('\n' | ')' | ';') | None => commands.push(command),
                Some(_) => return Err(self.unexpected()),
            }
        }
        self.depth -= 1;
        if self.peek().is_none() && !self.announced.is_empty() {
            return Err(Bad::Unfinished);
        }
        Ok(if commands.len() == 1 {
            commands.remove(0)
        } else {
            Arc::new(Node::Sequence(commands))
        })
    }

    /// As [`Parser::list`], with at least one command in it.
    fn some_list(&mut self, ends: &[&str]) -> Result<Arc<Node>> {
        let list = self.list(ends)?;
        match &*list {
            Node::Sequence(commands) if commands.is_empty() => Err(self.unexpected()),
            _ => Ok(list),
        }
    }

    /// A complete command of an interactive shell's line, or of a script that
    /// is read as it comes; nothing at the end of the text.
    pub fn next_line(&mut self) -> Result<Option<Arc<Node>>> {
        self.skip_newlines()?;
        if self.peek().is_none() {
            return Ok(None);
        }
        let mut commands = Vec::new();
        loop {
            let command = self.and_or()?;
            self.skip_blanks();
            match self.peek() {
                Some('&') => {
                    self.at += 1;
                    commands.push(Arc::new(Node::Background(command)));
                }
                Some(';') => {
                    self.at += 1;
                    commands.push(command);
                }
                _ => commands.push(command),
            }
            self.skip_blanks();
            match self.peek() {
                None if self.announced.is_empty() => break,
                None => return Err(Bad::Unfinished),
                Some('\n') => {
                    self.newline()?;
                    break;
                }
                Some(_) => {}
            }
        }
        Ok(Some(Arc::new(Node::Sequence(commands))))
    }

    fn and_or(&mut self) -> Result<Arc<Node>> {
        let mut left = self.pipeline()?;
        loop {
            self.skip_blanks();
            let and = self.take("&&");
            if !and && !self.take("||") {
                return Ok(left);
            }
            self.skip_newlines()?;
            let right = self.pipeline()?;
            left = Arc::new(if and {
                Node::And(left, right)
            } else {
                Node::Or(left, right)
            });
        }
    }

    fn pipeline(&mut self) -> Result<Arc<Node>> {
        let mut negated = false;
        while self.reserved() == Some("!") {
            self.at += 1;
            negated = !negated;
        }
        let mut stages = vec![self.command()?];
        loop {
            self.skip_blanks();
            if self.peek() != Some('|') || self.peek_at(1) == Some('|') {
                break;
            }
            self.at += 1;
            self.skip_newlines()?;
            stages.push(self.command()?);
        }
        Ok(if stages.len() == 1 && !negated {
            stages.remove(0)
        } else {
            Arc::new(Node::Pipeline { negated, stages })
        })
    }

    fn command(&mut self) -> Result<Arc<Node>> {
        self.deeper()?;
        let node = match self.reserved() {
            Some("if") => Some(self.condition()?),
            Some(word @ ("while" | "until")) => Some(self.while_loop(word)?),
            Some("for") => Some(self.for_loop()?),
            Some("case") => Some(self.case()?),
            Some("{") => {
                self.at += 1;
                let body = self.some_list(&["}"])?;
                self.expect("}")?;
                Some(Node::Group(body))
            }
            Some(_) => return Err(self.unexpected()),
            None if self.peek() == Some('(') => {
                self.at += 1;
                let body = self.some_list(&[])?;
                if !self.take(")") {
                    return Err(self.unexpected());
                }
                Some(Node::Subshell(body))
            }
            None => None,
        };
        let command = match node {
            None => self.simple()?,
            Some(node) => {
                let mut redirections = Vec::new();
                while let Some(redirection) = self.redirection()? {
                    redirections.push(redirection);
                }
                let node = Arc::new(node);
                if redirections.is_empty() {
                    node
                } else {
                    Arc::new(Node::Redirected(node, redirections))
                }
            }
        };
        self.depth -= 1;
        Ok(command)
    }

    fn condition(&mut self) -> Result<Node> {
        self.at += "if".len();
        let mut arms = Vec::new();
        loop {
            let condition = self.some_list(&["then"])?;
            self.expect("then")?;
            let body = self.some_list(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            match self.reserved() {
                Some("elif") => self.at += "elif".len(),
                Some("else") => {
                    self.at += "else".len();
                    let otherwise = Some(self.some_list(&["fi"])?);
                    self.expect("fi")?;
                    return Ok(Node::If { arms, otherwise });
                }
                _ => {
                    self.expect("fi")?;
                    return Ok(Node::If {
                        arms,
                        otherwise: None,
                    });
                }
            }
        }
    }

    fn body(&mut self) -> Result<Arc<Node>> {
        self.expect("do")?;
        let body = self.some_list(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn while_loop(&mut self, word: &str) -> Result<Node> {
        self.at += word.len();
        let condition = self.some_list(&["do"])?;
        Ok(Node::While {
            until: word == "until",
            condition,
            body: self.body()?,
        })
    }

    fn for_loop(&mut self) -> Result<Node> {
        self.at += "for".len();
        self.skip_blanks();
        let name = self.name().ok_or_else(|| self.unexpected())?;
        self.skip_newlines()?;
        let mut words = None;
        if self.take("in") {
            let mut list = Vec::new();
            loop {
                self.skip_blanks();
                match self.peek() {
                    Some(';' | '\n') => break,
                    _ => list.push(self.word()?.ok_or_else(|| self.unexpected())?),
                }
            }
            words = Some(list);
        }
        self.skip_blanks();
        self.take(";");
        self.skip_newlines()?;
        Ok(Node::For {
            name,
            words,
            body: self.body()?,
        })
    }

    fn case(&mut self) -> Result<Node> {
        self.at += "case".len();
        self.skip_blanks();
        let word = self.word()?.ok_or_else(|| self.unexpected())?;
        self.skip_newlines()?;
        if !self.take("in") {
            return Err(self.unexpected());
        }
        let mut arms = Vec::new();
        loop {
            self.skip_newlines()?;
            if self.reserved() == Some("esac") {
                break;
            }
            self.take("(");
            let mut patterns = Vec::new();
            loop {
                self.skip_blanks();
                patterns.push(self.word()?.ok_or_else(|| self.unexpected())?);
                self.skip_blanks();
                if !self.take("|") {
                    break;
                }
            }
            if !self.take(")") {
                return Err(self.unexpected());
            }
            let body = self.list(&["esac"])?;
            arms.push((patterns, body));
            self.skip_newlines()?;
            if !self.take(";;") && self.reserved() != Some("esac") {
                return Err(self.unexpected());
            }
        }
        self.expect("esac")?;
        Ok(Node::Case { word, arms })
    }

    /// A name of a variable or function.
    pub(super) fn name(&mut self) -> Option<String> {
        let first = self.peek()?;
        if !first.is_ascii_alphabetic() && first != '_' {
            return None;
        }
        let mut name = String::new();
        while let Some(c) = self.peek()
            && (c.is_ascii_alphanumeric() || c == '_')
        {
            name.push(c);
            self.at += 1;
        }
        Some(name)
    }

    fn simple(&mut self) -> Result<Arc<Node>> {
        let mut assignments = Vec::new();
        let mut words: Vec<Word> = Vec::new();
        let mut redirections = Vec::new();
        loop {
            self.skip_blanks();
            if let Some(redirection) = self.redirection()? {
                redirections.push(redirection);
                continue;
            }
            let start = self.at;
            if words.is_empty()
                && let Some(name) = self.name()
            {
                if self.peek() == Some('=') {
                    self.at += 1;
                    assignments.push((name, self.word()?.unwrap_or_default()));
                    continue;
                }
                self.skip_blanks();
                if assignments.is_empty() && redirections.is_empty() && self.peek() == Some('(') {
                    self.at += 1;
                    self.skip_blanks();
                    if !self.take(")") {
                        return Err(self.unexpected());
                    }
                    self.skip_newlines()?;
                    let body = self.command()?;
                    return Ok(Arc::new(Node::Function(name, body)));
                }
                self.at = start;
            }
            match self.word()? {
                Some(word) => words.push(word),
                None => break,
            }
        }
        if assignments.is_empty() && words.is_empty() && redirections.is_empty() {
            return Err(self.unexpected());
        }
        Ok(Arc::new(Node::Simple {
            assignments,
            words,
            redirections,
        }))
    }

    fn redirection(&mut self) -> Result<Option<Redirection>> {
        self.skip_blanks();
        let start = self.at;
        let mut number = String::new();
        while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
            number.push(digit);
            self.at += 1;
        }
        if !matches!(self.peek(), Some('<' | '>')) {
            self.at = start;
            return Ok(None);
        }
        let explicit = number.parse().ok();
        let reads = self.peek() == Some('<');
        let fd = explicit.unwrap_or(u32::from(!reads));
        // Longest first.
        let operators = ["<<-", "<<", "<&", "<>", "<", ">>", ">&", ">|", ">"];
        let operator = operators
            .into_iter()
            .find(|operator| self.take(operator))
            .unwrap_or(">");
        self.skip_blanks();
        if let "<<" | "<<-" = operator {
            let start = self.at;
            let word = self.word()?.ok_or_else(|| self.unexpected())?;
            let raw = &self.text[start..self.at];
            let end = word
                .iter()
                .map(|part| match part {
                    super::syntax::Part::Text(text) | super::syntax::Part::Quoted(text) => {
                        text.as_str()
                    }
                    _ => "",
                })
                .collect();
            let text = Arc::new(OnceLock::new());
            self.announced.push(Announced {
                text: text.clone(),
                end,
                expands: !raw.iter().any(|c| "'\"\\".contains(*c)),
                cuts_tabs: operator == "<<-",
            });
            let target = Target::Here(text);
            return Ok(Some(Redirection { fd, target }));
        }
        let word = self.word()?.ok_or_else(|| self.unexpected())?;
        let target = match operator {
            "<" => Target::Read(word),
            "<>" => Target::ReadWrite(word),
            ">>" => Target::Append(word),
            "<&" | ">&" => Target::Duplicate(word),
            _ => Target::Write(word),
        };
        Ok(Some(Redirection { fd, target }))
    }
}
