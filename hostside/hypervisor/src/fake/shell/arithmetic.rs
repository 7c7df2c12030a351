//! `$((...))` (XCU 2.6.4): signed 64-bit numbers, C's operators.

/// Variables, as an expression sees them.
pub trait Variables {
    /// A variable's value, empty where there is none.
    fn get(&self, name: &str) -> String;
    /// Gives it another.
    fn set(&mut self, name: &str, value: String);
}

/// Deepest nesting.
const DEEPEST: u32 = 100;

struct Expression<'a, V> {
    text: Vec<char>,
    at: usize,
    depth: u32,
    /// What is not chosen is read and not done.
    idle: u32,
    variables: &'a mut V,
}

type Result<T> = std::result::Result<T, String>;

/// The value of an expression.
///
/// # Errors
/// What is wrong with it, for people.
pub fn evaluate<V: Variables>(text: &str, variables: &mut V) -> Result<i64> {
    let mut expression = Expression {
        text: text.chars().collect(),
        at: 0,
        depth: 0,
        idle: 0,
        variables,
    };
    expression.blanks();
    if expression.at == expression.text.len() {
        return Ok(0);
    }
    let value = expression.assignment()?;
    expression.blanks();
    if expression.at < expression.text.len() {
        return Err("arithmetic syntax error".into());
    }
    Ok(value)
}

/// Binary operators, loosest first; `&&` and `||` are elsewhere.
const LEVELS: [&[&str]; 8] = [
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

const ASSIGNMENTS: [&str; 11] = [
    "<<=", ">>=", "=", "+=", "-=", "*=", "/=", "%=", "&=", "^=", "|=",
];

impl<V: Variables> Expression<'_, V> {
    fn blanks(&mut self) {
        while self.text.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
    }

    fn sees(&self, operator: &str) -> bool {
        operator
            .chars()
            .enumerate()
            .all(|(ahead, c)| self.text.get(self.at + ahead) == Some(&c))
    }

    fn take(&mut self, operator: &str) -> bool {
        self.blanks();
        let there = self.sees(operator);
        if there {
            self.at += operator.len();
        }
        there
    }

    fn name(&mut self) -> Option<String> {
        self.blanks();
        let first = self.text.get(self.at)?;
        if !first.is_ascii_alphabetic() && *first != '_' {
            return None;
        }
        let name: String = self.text[self.at..]
            .iter()
            .take_while(|c| c.is_ascii_alphanumeric() || **c == '_')
            .collect();
        self.at += name.len();
        Some(name)
    }

    fn value_of(&self, name: &str) -> Result<i64> {
        let text = self.variables.get(name);
        number(text.trim()).ok_or_else(|| format!("Illegal number: {text}"))
    }

    fn assignment(&mut self) -> Result<i64> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("arithmetic expression nested too deeply".into());
        }
        let start = self.at;
        if let Some(name) = self.name() {
            self.blanks();
            let operator = ASSIGNMENTS
                .into_iter()
                .find(|operator| self.sees(operator) && !(*operator == "=" && self.sees("==")));
            if let Some(operator) = operator {
                self.at += operator.len();
                let right = self.assignment()?;
                let value = match operator.strip_suffix('=') {
                    Some("") | None => right,
                    Some(binary) => {
                        let left = self.value_of(&name)?;
                        self.apply(binary, left, right)?
                    }
                };
                self.set(&name, value);
                self.depth -= 1;
                return Ok(value);
            }
            self.at = start;
        }
        let value = self.choice()?;
        self.depth -= 1;
        Ok(value)
    }

    fn set(&mut self, name: &str, value: i64) {
        if self.idle == 0 {
            self.variables.set(name, value.to_string());
        }
    }

    fn unless<T>(&mut self, idle: bool, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.idle += u32::from(idle);
        let value = read(self);
        self.idle -= u32::from(idle);
        value
    }

    fn choice(&mut self) -> Result<i64> {
        let condition = self.or()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.unless(condition == 0, Self::assignment)?;
        if !self.take(":") {
            return Err("arithmetic syntax error".into());
        }
        let no = self.unless(condition != 0, Self::choice)?;
        Ok(if condition != 0 { yes } else { no })
    }

    fn or(&mut self) -> Result<i64> {
        let mut left = self.and()?;
        while self.take("||") {
            let right = self.unless(left != 0, Self::and)?;
            left = i64::from(left != 0 || right != 0);
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<i64> {
        let mut left = self.binary(0)?;
        while self.take("&&") {
            let right = self.unless(left == 0, |e| e.binary(0))?;
            left = i64::from(left != 0 && right != 0);
        }
        Ok(left)
    }

    fn binary(&mut self, level: usize) -> Result<i64> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.binary(level + 1)?;
        loop {
            self.blanks();
            let found = operators.iter().find(|operator| {
                let longer = match **operator {
                    "|" => self.sees("||"),
                    "&" => self.sees("&&"),
                    "<" => self.sees("<<"),
                    ">" => self.sees(">>"),
                    _ => false,
                };
                self.sees(operator) && !longer
            });
            let Some(operator) = found else {
                return Ok(left);
            };
            self.at += operator.len();
            let right = self.binary(level + 1)?;
            left = self.apply(operator, left, right)?;
        }
    }

    fn apply(&self, operator: &str, left: i64, right: i64) -> Result<i64> {
        if matches!(operator, "/" | "%") && right == 0 {
            return if self.idle > 0 {
                Ok(0)
            } else {
                Err("divide by zero".into())
            };
        }
        // C shifts by the low bits, as the processor does.
        let by = (right & 63) as u32;
        Ok(match operator {
            "|" => left | right,
            "^" => left ^ right,
            "&" => left & right,
            "==" => i64::from(left == right),
            "!=" => i64::from(left != right),
            "<=" => i64::from(left <= right),
            ">=" => i64::from(left >= right),
            "<" => i64::from(left < right),
            ">" => i64::from(left > right),
            "<<" => left.wrapping_shl(by),
            ">>" => left.wrapping_shr(by),
            "+" => left.wrapping_add(right),
            "-" => left.wrapping_sub(right),
            "*" => left.wrapping_mul(right),
            "/" => left.wrapping_div(right),
            _ => left.wrapping_rem(right),
        })
    }

    fn unary(&mut self) -> Result<i64> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("arithmetic expression nested too deeply".into());
        }
        let value = self.operand();
        self.depth -= 1;
        value
    }

    fn operand(&mut self) -> Result<i64> {
        for (operator, by) in [("++", 1), ("--", -1)] {
            if self.take(operator) {
                let name = self.name().ok_or("arithmetic syntax error")?;
                let value = self.value_of(&name)?.wrapping_add(by);
                self.set(&name, value);
                return Ok(value);
            }
        }
        if self.take("-") {
            return Ok(self.unary()?.wrapping_neg());
        }
        if self.take("+") {
            return self.unary();
        }
        if self.take("!") {
            return Ok(i64::from(self.unary()? == 0));
        }
        if self.take("~") {
            return Ok(!self.unary()?);
        }
        if self.take("(") {
            let value = self.assignment()?;
            return if self.take(")") {
                Ok(value)
            } else {
                Err("arithmetic syntax error".into())
            };
        }
        if let Some(name) = self.name() {
            let value = self.value_of(&name)?;
            for (operator, by) in [("++", 1), ("--", -1)] {
                if self.take(operator) {
                    self.set(&name, value.wrapping_add(by));
                }
            }
            return Ok(value);
        }
        let digits: String = self.text[self.at..]
            .iter()
            .take_while(|c| c.is_ascii_alphanumeric())
            .collect();
        self.at += digits.len();
        if digits.is_empty() {
            return Err("arithmetic syntax error".into());
        }
        number(&digits).ok_or_else(|| format!("Illegal number: {digits}"))
    }
}

/// A number as C writes it; nothing is 0.
fn number(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        i64::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|value| sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    impl Variables for BTreeMap<String, String> {
        fn get(&self, name: &str) -> String {
            BTreeMap::get(self, name).cloned().unwrap_or_default()
        }
        fn set(&mut self, name: &str, value: String) {
            self.insert(name.into(), value);
        }
    }

    #[test]
    fn expressions_have_the_values_c_gives_them() {
        let mut variables = BTreeMap::from([("x".to_owned(), "5".to_owned())]);
        for (text, expected) in [
            ("", Ok(0)),
            ("1+2*3", Ok(7)),
            ("(1+2)*3", Ok(9)),
            ("-7/2", Ok(-3)),
            ("-7%3", Ok(-1)),
            ("1<<4|1", Ok(17)),
            ("x", Ok(5)),
            ("y", Ok(0)),
            ("x=x+1", Ok(6)),
            ("x+=2", Ok(8)),
            ("x++", Ok(8)),
            ("--x", Ok(8)),
            ("1 ? 2 : 3", Ok(2)),
            ("0 ? 1/0 : 3", Ok(3)),
            ("1 || 1/0", Ok(1)),
            ("!3 + ~0", Ok(-1)),
            ("0x10 + 010", Ok(24)),
            ("3 > 2 && 2 >= 2", Ok(1)),
            ("1/0", Err("divide by zero".to_owned())),
            ("1+", Err("arithmetic syntax error".to_owned())),
        ] {
            assert_eq!(evaluate(text, &mut variables), expected, "{text}");
        }
        assert!(evaluate(&"(".repeat(10_000), &mut variables).is_err());
    }
}
