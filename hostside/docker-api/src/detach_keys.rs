//! The keys with which one leaves a container and lets it run.
//!
//! Source: Engine API 1.47, `detachKeys` of `ContainerAttach`: a single character `[a-Z]`, or `ctrl-VALUE`
//! with `a-z`, `@`, `^`, `[`, `\`, `]` or `_`; several separated by commas.

/// A sequence of bytes to look for in what a user types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// A text that names no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid detach keys ({0}) provided")]
pub struct InvalidKeys(String);

impl Default for DetachKeys {
    /// `ctrl-p,ctrl-q`.
    fn default() -> Self {
        Self(vec![16, 17])
    }
}

impl DetachKeys {
    /// The keys that `text` names; the usual ones if it is empty.
    ///
    /// # Errors
    /// [`InvalidKeys`].
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let key = |name: &str| match name.as_bytes() {
            [single] => Some(*single),
            _ => match name.strip_prefix("ctrl-")?.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                b"@" => Some(0),
                b"[" => Some(27),
                b"\\" => Some(28),
                b"]" => Some(29),
                b"^" => Some(30),
                b"_" => Some(31),
                _ => None,
            },
        };
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        keys.map(Self)
            .ok_or_else(|| InvalidKeys(text.chars().take(80).collect()))
    }

    /// Starts looking for them.
    pub fn scanner(self) -> Scanner {
        Scanner {
            keys: self.0,
            matched: 0,
        }
    }
}

/// Looks for the keys in what a user types. Keys that may be the beginning of the sequence are kept back
/// until the next ones show whether they are.
#[derive(Debug)]
pub struct Scanner {
    keys: Vec<u8>,
    matched: usize,
}

/// What became of some input.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// This is for the process.
    Pass(Vec<u8>),
    /// This still is for the process; then the user left.
    Detach(Vec<u8>),
}

impl Scanner {
    /// Takes what the user typed.
    pub fn scan(&mut self, input: &[u8]) -> Scanned {
        let mut pass = Vec::with_capacity(input.len() + self.matched);
        for &byte in input {
            // What was kept back may hold a later beginning of the sequence: find the longest one.
            while self.matched > 0 && self.keys[self.matched] != byte {
                let kept = &self.keys[..self.matched];
                let next = (1..self.matched)
                    .find(|start| kept[*start..] == kept[..self.matched - start])
                    .unwrap_or(self.matched);
                pass.extend_from_slice(&kept[..next]);
                self.matched -= next;
            }
            if self.keys[self.matched] == byte {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return Scanned::Detach(pass);
                }
            } else {
                pass.push(byte);
            }
        }
        Scanned::Pass(pass)
    }

    /// What was kept back when the input ended.
    pub fn rest(self) -> Vec<u8> {
        let mut keys = self.keys;
        keys.truncate(self.matched);
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_letters_or_control_characters() {
        let cases: [(&str, Option<&[u8]>); 9] = [
            ("", Some(&[16, 17])),
            ("a", Some(b"a")),
            ("ctrl-p,ctrl-q", Some(&[16, 17])),
            ("ctrl-@,x", Some(&[0, b'x'])),
            (
                "ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_",
                Some(&[27, 28, 29, 30, 31]),
            ),
            ("ctrl-A", None),
            ("ctrl-", None),
            ("ab", None),
            ("a,,b", None),
        ];
        for (text, expected) in cases {
            let keys = DetachKeys::parse(text).ok();
            assert_eq!(
                keys,
                expected.map(|keys| DetachKeys(keys.to_vec())),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_sequence_is_taken_out_and_all_else_passes() {
        let mut scanner = DetachKeys::default().scanner();
        assert_eq!(scanner.scan(b"ab"), Scanned::Pass(b"ab".to_vec()));
        assert_eq!(scanner.scan(&[16]), Scanned::Pass(vec![]));
        assert_eq!(scanner.scan(&[16]), Scanned::Pass(vec![16]));
        assert_eq!(scanner.scan(b"c"), Scanned::Pass(vec![16, b'c']));
        assert_eq!(
            scanner.scan(&[b'd', 16, 17, b'e']),
            Scanned::Detach(vec![b'd'])
        );
        assert_eq!(scanner.scan(&[16]), Scanned::Pass(vec![]));
        assert_eq!(scanner.rest(), vec![16]);
    }

    proptest! {
        /// Against looking for the sequence in everything at once.
        #[test]
        fn pieces_make_no_difference(
            keys in prop::collection::vec(0u8..3, 1..5),
            input in prop::collection::vec(0u8..3, 0..40),
            cut in 1usize..7,
        ) {
            let whole = input.windows(keys.len()).position(|window| window == keys);
            let mut scanner = DetachKeys(keys.clone()).scanner();
            let mut passed = Vec::new();
            let mut detached = false;
            for piece in input.chunks(cut) {
                match scanner.scan(piece) {
                    Scanned::Pass(bytes) => passed.extend(bytes),
                    Scanned::Detach(bytes) => {
                        passed.extend(bytes);
                        detached = true;
                        break;
                    }
                }
            }
            prop_assert_eq!(detached, whole.is_some());
            if let Some(at) = whole {
                prop_assert_eq!(&passed, &input[..at]);
            } else {
                passed.extend(scanner.rest());
                prop_assert_eq!(&passed, &input);
            }
        }
    }
}
