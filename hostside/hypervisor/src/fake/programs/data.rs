//! Programs about bytes.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::text::count;
use super::{CHUNK, Call, Failure, Outcome};
use crate::fake::files::describe;
use crate::fake::kernel::Access;

pub async fn dd(call: &Call) -> Outcome {
    let (mut input, mut output) = ("-", None);
    let (mut size, mut blocks, mut skip, mut seek) = (512, u64::MAX, 0, 0);
    let (mut quiet, mut truncates) = (false, true);
    for argument in &call.argv[1..] {
        let Some((name, value)) = argument.split_once('=') else {
            return Err(Failure::usage(format!("invalid argument '{argument}'")));
        };
        match name {
            "if" => input = value,
            "of" => output = Some(value),
            "bs" | "ibs" | "obs" => size = count(value)?,
            "count" => blocks = count(value)?,
            "skip" => skip = count(value)?,
            "seek" => seek = count(value)?,
            "status" => quiet = value == "none",
            "conv" => truncates = !value.split(',').any(|word| word == "notrunc"),
            "iflag" | "oflag" => {}
            _ => return Err(Failure::usage(format!("invalid argument '{argument}'"))),
        }
    }
    if size == 0 {
        return Err(Failure::new(1, "bs: invalid number '0'"));
    }
    // The buffer is one block, however long that is.
    call.sys.allocate(size);
    call.sys.step().await;
    let from = call.open(input).await?;
    let to = match output {
        None => 1,
        Some(path) => {
            let access = Access {
                truncate: truncates && seek == 0,
                ..Access::WRITE
            };
            call.sys
                .open(path, access)
                .await
                .map_err(|errno| Failure::on(format!("can't open '{path}'"), errno))?
        }
    };
    if seek > 0 {
        call.sys
            .seek(to, seek.saturating_mul(size))
            .map_err(|errno| Failure::on("lseek", errno))?;
    }
    let mut skipped = skip.saturating_mul(size);
    let (mut whole, mut part, mut bytes) = (0u64, 0u64, 0u64);
    let mut failure = None;
    'blocks: while whole + part < blocks {
        let mut filled = 0;
        while filled < size {
            let most = usize::try_from(size - filled).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = match call.sys.read(from, most).await {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => chunk,
                Err(errno) => {
                    failure = Some(Failure::on(input, errno));
                    break 'blocks;
                }
            };
            if skipped > 0 {
                let cut = usize::try_from(skipped)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                chunk.drain(..cut);
                skipped -= cut as u64;
            }
            filled += chunk.len() as u64;
            bytes += chunk.len() as u64;
            if let Err(errno) = call.sys.write(to, &chunk).await {
                failure = Some(Failure::on("error writing", errno));
                break 'blocks;
            }
        }
        match filled {
            0 => break,
            filled if filled == size => whole += 1,
            _ => part += 1,
        }
    }
    if !quiet {
        let text = format!(
            "{whole}+{part} records in\n{whole}+{part} records out\n{bytes} bytes copied\n"
        );
        let _ = call.sys.write(2, text.as_bytes()).await;
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(0),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, section 4.
fn encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut word = 0u32;
        for at in 0..3 {
            word = word << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            if at <= group.len() {
                let index = (word >> (18 - 6 * at)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut word, mut bits) = (0u32, 0);
    for byte in text {
        if byte.is_ascii_whitespace() || *byte == b'=' {
            continue;
        }
        let value = ALPHABET.iter().position(|known| known == byte)?;
        word = word << 6 | u32::try_from(value).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(((word >> bits) & 0xff) as u8);
        }
    }
    Some(bytes)
}

pub async fn base64(call: &Call) -> Outcome {
    let options = call.options("dw:")?;
    let (bytes, status) = call.read_operands(&options.operands).await;
    if options.has('d') {
        let bytes = decoded(&bytes).ok_or_else(|| Failure::new(1, "truncated input"))?;
        call.print(bytes).await?;
        return Ok(status);
    }
    let width = options
        .value('w')
        .and_then(|text| text.parse().ok())
        .unwrap_or(76);
    let text = encoded(&bytes);
    let mut output = String::new();
    if width == 0 {
        output = text;
    } else {
        for line in text.as_bytes().chunks(width) {
            output += &String::from_utf8_lossy(line);
            output.push('\n');
        }
    }
    call.print(output).await?;
    Ok(status)
}

pub async fn sha256sum(call: &Call) -> Outcome {
    let options = call.options("cs")?;
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push("-".into());
    }
    let mut status = 0;
    for path in &operands {
        let fd = match call.open(path).await {
            Ok(fd) => fd,
            Err(failure) => {
                call.complain(failure.message).await;
                status = 1;
                continue;
            }
        };
        let mut hash = Sha256::new();
        let ended = loop {
            match call.sys.read(fd, CHUNK).await {
                Ok(bytes) if bytes.is_empty() => break Ok(()),
                Ok(bytes) => hash.update(bytes),
                Err(errno) => break Err(errno),
            }
        };
        if fd != 0 {
            call.sys.close(fd);
        }
        if let Err(errno) = ended {
            call.complain(format!("can't read '{path}': {}", describe(errno)))
                .await;
            status = 1;
            continue;
        }
        let mut line = String::new();
        for byte in hash.finalize() {
            let _ = write!(line, "{byte:02x}");
        }
        call.print(format!("{line}  {path}\n")).await?;
    }
    Ok(status)
}

pub async fn no_digest(_: &Call) -> Outcome {
    Err(Failure::new(1, "not simulated: use sha256sum"))
}

/// `od -A n -t x1`, `xxd -p`, and the rest as plain hexadecimal lines.
pub async fn od(call: &Call) -> Outcome {
    let operands: Vec<String> = call.argv[1..]
        .iter()
        .filter(|argument| argument.starts_with('/') || argument.contains('.'))
        .cloned()
        .collect();
    let (bytes, status) = call.read_operands(&operands).await;
    let mut text = String::new();
    for line in bytes.chunks(16) {
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    call.print(text).await?;
    Ok(status)
}

pub async fn cmp(call: &Call) -> Outcome {
    let options = call.options("sqlu")?;
    let [left, right, ..] = options.operands.as_slice() else {
        return Err(Failure::usage("missing operand"));
    };
    let (a, b) = (call.read(left).await?, call.read(right).await?);
    if a == b {
        return Ok(0);
    }
    if call.name() == "diff" {
        if options.has('q') {
            call.print(format!("Files {left} and {right} differ\n"))
                .await?;
            return Ok(1);
        }
        let mut text = String::new();
        for (mark, bytes) in [('-', &a), ('+', &b)] {
            for line in String::from_utf8_lossy(bytes).lines() {
                let _ = writeln!(text, "{mark}{line}");
            }
        }
        call.print(format!("--- {left}\n+++ {right}\n{text}"))
            .await?;
    } else if !options.has('s') {
        let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let line = a[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        call.print(format!(
            "{left} {right} differ: char {}, line {line}\n",
            at + 1
        ))
        .await?;
    }
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encoded(plain.as_bytes()), text);
            assert_eq!(decoded(text.as_bytes()).unwrap(), plain.as_bytes());
        }
        assert_eq!(decoded(b"!"), None);
    }
}
