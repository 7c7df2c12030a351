//! What a script is, once read.

use std::sync::{Arc, OnceLock};

/// A word before expansion.
pub type Word = Vec<Part>;

/// A part of a word.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// As it stands; may hold patterns.
    Text(String),
    /// As it stands, between quotes or after a backslash.
    Quoted(String),
    /// A parameter.
    Parameter {
        /// Its name: of a variable, digits, or one of `@ * # ? - $ !`.
        name: String,
        /// What is done with its value.
        operation: Operation,
        /// Between double quotes.
        quoted: bool,
    },
    /// `$(...)`.
    Command {
        /// The script.
        script: Arc<Node>,
        /// Between double quotes.
        quoted: bool,
    },
    /// `$((...))`.
    Arithmetic {
        /// The expression, to be expanded first.
        expression: Word,
        /// Between double quotes.
        quoted: bool,
    },
}

/// What is done with a parameter's value. Where a flag is, it says that an empty
/// value counts as none.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// `$X`.
    Value,
    /// `${#X}`.
    Length,
    /// `${X-W}`, `${X:-W}`.
    Default(Word, bool),
    /// `${X=W}`, `${X:=W}`.
    Assign(Word, bool),
    /// `${X+W}`, `${X:+W}`.
    Alternative(Word, bool),
    /// `${X?W}`, `${X:?W}`.
    Require(Word, bool),
    /// `${X#W}`, `${X##W}`: the flag says whether it is the longest.
    CutStart(Word, bool),
    /// `${X%W}`, `${X%%W}`.
    CutEnd(Word, bool),
}

/// Where a descriptor leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// `<`.
    Read(Word),
    /// `>`, `>|`.
    Write(Word),
    /// `>>`.
    Append(Word),
    /// `<>`.
    ReadWrite(Word),
    /// `>&`, `<&`: a number or `-`.
    Duplicate(Word),
    /// `<<`: the text, which is read after its line.
    Here(Arc<OnceLock<Word>>),
}

/// A redirection.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirection {
    /// Of this descriptor.
    pub fd: u32,
    /// To this.
    pub target: Target,
}

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Words, after assignments.
    Simple {
        /// `NAME=word`.
        assignments: Vec<(String, Word)>,
        /// Command and arguments.
        words: Vec<Word>,
        /// In order.
        redirections: Vec<Redirection>,
    },
    /// `a | b`, `! a`.
    Pipeline {
        /// `!`.
        negated: bool,
        /// At least one.
        stages: Vec<Arc<Node>>,
    },
    /// `a && b`.
    And(Arc<Node>, Arc<Node>),
    /// `a || b`.
    Or(Arc<Node>, Arc<Node>),
    /// `a; b`.
    Sequence(Vec<Arc<Node>>),
    /// `a &`.
    Background(Arc<Node>),
    /// `if`.
    If {
        /// Conditions and what they are for.
        arms: Vec<(Arc<Node>, Arc<Node>)>,
        /// `else`.
        otherwise: Option<Arc<Node>>,
    },
    /// `while`, `until`.
    While {
        /// It is `until`.
        until: bool,
        /// Before each round.
        condition: Arc<Node>,
        /// Each round.
        body: Arc<Node>,
    },
    /// `for`.
    For {
        /// The variable.
        name: String,
        /// Without, the positional parameters.
        words: Option<Vec<Word>>,
        /// Each round.
        body: Arc<Node>,
    },
    /// `case`.
    Case {
        /// What is compared.
        word: Word,
        /// Patterns, and what they are for.
        arms: Vec<(Vec<Word>, Arc<Node>)>,
    },
    /// `{ ...; }`.
    Group(Arc<Node>),
    /// `( ... )`.
    Subshell(Arc<Node>),
    /// `name() ...`.
    Function(String, Arc<Node>),
    /// A compound command with redirections.
    Redirected(Arc<Node>, Vec<Redirection>),
}
