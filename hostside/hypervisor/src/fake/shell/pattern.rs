//! Patterns of file names and `case` (XCU 2.13).

/// A character, and whether it stands only for itself.
pub type Marked = (char, bool);

/// Whether anything in it is a pattern.
pub fn is_pattern(pattern: &[Marked]) -> bool {
    pattern
        .iter()
        .any(|(c, plain)| !plain && matches!(c, '*' | '?' | '['))
}

/// Whether a text is what a pattern says.
pub fn matches(pattern: &[Marked], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and what it has swallowed up to.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(('*', false)) => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(marked) => text.get(t).and_then(|c| one(pattern, p, *marked, *c)),
        };
        match (step, star) {
            (Some(next), _) => {
                p = next;
                t += 1;
            }
            (None, Some((at, swallowed))) if swallowed < text.len() => {
                star = Some((at, swallowed + 1));
                p = at + 1;
                t = swallowed + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Whether what is at `p` is `c`; where the pattern goes on.
fn one(pattern: &[Marked], p: usize, marked: Marked, c: char) -> Option<usize> {
    match marked {
        ('?', false) => Some(p + 1),
        ('[', false) => match set(pattern, p + 1, c) {
            Some((true, next)) => Some(next),
            Some((false, _)) => None,
            None => (c == '[').then_some(p + 1),
        },
        (wanted, _) => (wanted == c).then_some(p + 1),
    }
}

/// Whether `c` is in the set that begins at `p`, and where that ends.
fn set(pattern: &[Marked], mut p: usize, c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(p), Some(('!' | '^', false)));
    if negated {
        p += 1;
    }
    let mut found = false;
    let first = p;
    loop {
        let (low, plain) = *pattern.get(p)?;
        if low == ']' && !plain && p > first {
            return Some((found != negated, p + 1));
        }
        if low == '[' && matches!(pattern.get(p + 1), Some((':', _))) {
            let name: String = pattern[p + 2..]
                .iter()
                .map(|(c, _)| *c)
                .take_while(|c| *c != ':')
                .collect();
            found |= in_class(&name, c);
            p += name.chars().count() + 4;
            continue;
        }
        match (pattern.get(p + 1), pattern.get(p + 2)) {
            (Some(('-', false)), Some((high, _))) if *high != ']' => {
                found |= (low..=*high).contains(&c);
                p += 3;
            }
            _ => {
                found |= low == c;
                p += 1;
            }
        }
    }
}

/// Character classes (XBD 7.3.1, in the C locale).
pub fn in_class(name: &str, c: char) -> bool {
    match name {
        "alpha" => c.is_ascii_alphabetic(),
        "digit" => c.is_ascii_digit(),
        "alnum" => c.is_ascii_alphanumeric(),
        "upper" => c.is_ascii_uppercase(),
        "lower" => c.is_ascii_lowercase(),
        "space" => c.is_ascii_whitespace() || c == '\x0b',
        "blank" => matches!(c, ' ' | '\t'),
        "punct" => c.is_ascii_punctuation(),
        "xdigit" => c.is_ascii_hexdigit(),
        "cntrl" => c.is_ascii_control(),
        "print" => c.is_ascii_graphic() || c == ' ',
        "graph" => c.is_ascii_graphic(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_match_their_patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.x", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "x", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]a]", "]", true),
            ("[[:digit:]]*", "7up", true),
            ("[", "[", true),
            ("", "", true),
            ("", "x", false),
            ("**a", "bba", true),
        ] {
            let marked: Vec<Marked> = pattern.chars().map(|c| (c, false)).collect();
            let text_chars: Vec<char> = text.chars().collect();
            assert_eq!(matches(&marked, &text_chars), expected, "{pattern} {text}");
        }
        assert!(!matches(&[('*', true)], &['x']));
    }
}
