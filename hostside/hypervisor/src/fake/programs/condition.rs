//! `test` and `[`.

use super::{Call, Failure, Outcome};
use crate::fake::files::tree::Kind;
use crate::fake::kernel::sys::Sys;

/// Whether an expression holds.
///
/// # Errors
/// What is wrong with it.
pub fn holds(sys: &Sys, operands: &[String]) -> Result<bool, String> {
    let words: Vec<&str> = operands.iter().map(String::as_str).collect();
    // By number of words, as POSIX has it; what is longer is read as it comes.
    match words[..] {
        [] => Ok(false),
        [one] => Ok(!one.is_empty()),
        ["!", one] => Ok(one.is_empty()),
        [left, operator, right] if is_binary(operator) => binary(sys, left, operator, right),
        _ => {
            let mut expression = Expression {
                sys,
                words: &words,
                at: 0,
                depth: 0,
            };
            let holds = expression.or()?;
            match words.get(expression.at) {
                None => Ok(holds),
                Some(word) => Err(format!("{word}: unexpected operator")),
            }
        }
    }
}

struct Expression<'a> {
    sys: &'a Sys,
    words: &'a [&'a str],
    at: usize,
    depth: u32,
}

/// Deepest parentheses.
const DEEPEST: u32 = 100;

impl Expression<'_> {
    fn take(&mut self, word: &str) -> bool {
        let there = self.words.get(self.at) == Some(&word);
        self.at += usize::from(there);
        there
    }

    fn or(&mut self) -> Result<bool, String> {
        let mut left = self.and()?;
        while self.take("-o") {
            left |= self.and()?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut left = self.not()?;
        while self.take("-a") {
            left &= self.not()?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<bool, String> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        Ok(self.primary()? != negated)
    }

    fn primary(&mut self) -> Result<bool, String> {
        let word = |ahead: usize| self.words.get(self.at + ahead).copied();
        if let (Some(left), Some(operator), Some(right)) = (word(0), word(1), word(2))
            && is_binary(operator)
        {
            self.at += 3;
            return binary(self.sys, left, operator, right);
        }
        if word(0) == Some("(") {
            self.at += 1;
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err("nested too deeply".into());
            }
            let holds = self.or()?;
            self.depth -= 1;
            return if self.take(")") {
                Ok(holds)
            } else {
                Err("closing paren expected".into())
            };
        }
        match (word(0), word(1)) {
            (Some(operator), Some(operand)) if operator.len() == 2 && operator.starts_with('-') => {
                self.at += 2;
                unary(self.sys, operator, operand)
            }
            (Some(one), _) => {
                self.at += 1;
                Ok(!one.is_empty())
            }
            (None, _) => Err("argument expected".into()),
        }
    }
}

fn is_binary(operator: &str) -> bool {
    [
        "=", "==", "!=", "<", ">", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef",
    ]
    .contains(&operator)
}

fn binary(sys: &Sys, left: &str, operator: &str, right: &str) -> Result<bool, String> {
    let number = |text: &str| {
        text.trim()
            .parse::<i64>()
            .map_err(|_| format!("{text}: bad number"))
    };
    let modified = |path: &str| sys.stat(path, true).ok().map(|stat| stat.node.mtime);
    Ok(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "-nt" => modified(left) > modified(right),
        "-ot" => modified(left) < modified(right),
        "-ef" => match (sys.stat(left, true), sys.stat(right, true)) {
            (Ok(left), Ok(right)) => left.place == right.place,
            _ => false,
        },
        _ => {
            let (left, right) = (number(left)?, number(right)?);
            match operator {
                "-eq" => left == right,
                "-ne" => left != right,
                "-lt" => left < right,
                "-le" => left <= right,
                "-gt" => left > right,
                _ => left >= right,
            }
        }
    })
}

fn unary(sys: &Sys, operator: &str, operand: &str) -> Result<bool, String> {
    match operator {
        "-n" => return Ok(!operand.is_empty()),
        "-z" => return Ok(operand.is_empty()),
        "-t" => {
            return Ok(operand
                .parse()
                .is_ok_and(|fd| sys.terminal_of(fd).is_some()));
        }
        _ => {}
    }
    let follow = !matches!(operator, "-h" | "-L");
    let Ok(stat) = sys.stat(operand, follow) else {
        return Ok(false);
    };
    let may = |wanted: u32| {
        let who = sys.own(|process| Some(process.who.clone()));
        who.is_some_and(|who| who.may(&stat.node, wanted).is_ok())
    };
    Ok(match operator {
        "-e" => true,
        "-f" => matches!(stat.node.kind, Kind::Regular(_)),
        "-d" => stat.node.is_directory(),
        "-h" | "-L" => matches!(stat.node.kind, Kind::Symlink(_)),
        "-p" => matches!(stat.node.kind, Kind::Fifo),
        "-S" => matches!(stat.node.kind, Kind::Socket),
        "-c" => matches!(stat.node.kind, Kind::Character(..)),
        "-b" => matches!(stat.node.kind, Kind::Block(..)),
        "-s" => stat.size > 0,
        "-r" => may(4),
        "-w" => may(2),
        "-x" => may(1),
        "-u" => stat.node.mode & 0o4000 != 0,
        "-g" => stat.node.mode & 0o2000 != 0,
        "-k" => stat.node.mode & 0o1000 != 0,
        "-O" => sys.own(|process| process.who.uid == stat.node.uid),
        "-G" => sys.own(|process| process.who.gid == stat.node.gid),
        _ => return Err(format!("{operator}: unknown operand")),
    })
}

pub async fn test(call: &Call) -> Outcome {
    let mut operands = &call.argv[1..];
    if call.name() == "[" {
        match operands.split_last() {
            Some((last, rest)) if last == "]" => operands = rest,
            _ => return Err(Failure::new(2, "missing ]")),
        }
    }
    match holds(&call.sys, operands) {
        Ok(holds) => Ok(u8::from(!holds)),
        Err(what) => Err(Failure::new(2, what)),
    }
}
