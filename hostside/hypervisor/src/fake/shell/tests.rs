//! Scripts, what comes of them, and what the machine's own shell makes of the
//! same ones.

use std::process::{Command, Stdio};

use proptest::prelude::*;

use crate::fake::script::{Container, Ran};

/// Scripts that any POSIX shell runs alike: script, stdout, status.
const SCRIPTS: &[(&str, &str, u8)] = &[
    ("", "", 0),
    ("echo hello world", "hello world\n", 0),
    ("echo a; echo b\necho c", "a\nb\nc\n", 0),
    ("exit 3", "", 3),
    ("false", "", 1),
    ("true && echo yes || echo no", "yes\n", 0),
    ("false && echo yes || echo no", "no\n", 0),
    ("! true; echo $?", "1\n", 0),
    ("! false", "", 0),
    ("echo 'a  b' \"c  d\" e\\ \\ f", "a  b c  d e  f\n", 0),
    ("x=5; echo $x ${x}y \"$x\" '$x'", "5 5y 5 $x\n", 0),
    ("x='a b  c'; echo $x; echo \"$x\"", "a b c\na b  c\n", 0),
    ("printf '%s\\n' \"a\\\"b\\$c\\\\d\\e\"", "a\"b$c\\d\\e\n", 0),
    (
        "set -- a 'b c' d; echo $#; for i in \"$@\"; do echo \"<$i>\"; done",
        "3\n<a>\n<b c>\n<d>\n",
        0,
    ),
    (
        "set -- a 'b c'; for i in $@; do echo \"<$i>\"; done",
        "<a>\n<b>\n<c>\n",
        0,
    ),
    (
        "set -- a b; echo \"$*\" \"<$1-$2>\"; shift; echo $1 $#",
        "a b <a-b>\nb 1\n",
        0,
    ),
    (
        "set --; for i in \"$@\"; do echo x; done; echo $#",
        "0\n",
        0,
    ),
    (
        "echo $(echo a; echo b) \"$(echo a; echo b)\"",
        "a b a\nb\n",
        0,
    ),
    ("echo `echo x`", "x\n", 0),
    ("x=$(false); echo $?", "1\n", 0),
    ("x=$(exit 7)", "", 7),
    (
        "echo $((1 + 2 * 3)) $(( (1+2)*3 )) $((7 / 2)) $((7 % 4))",
        "7 9 3 3\n",
        0,
    ),
    ("i=0; i=$((i+1)); echo $i $((i > 0 && i < 5))", "1 1\n", 0),
    ("if true; then echo a; else echo b; fi", "a\n", 0),
    (
        "if false; then echo a; elif true; then echo c; else echo b; fi",
        "c\n",
        0,
    ),
    ("if false; then echo a; fi; echo $?", "0\n", 0),
    (
        "i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done",
        "0\n1\n2\n",
        0,
    ),
    (
        "i=3; until [ $i = 0 ]; do i=$((i-1)); done; echo $i",
        "0\n",
        0,
    ),
    (
        "for i in 1 2 3 4; do [ $i = 2 ] && continue; [ $i = 4 ] && break; echo $i; done",
        "1\n3\n",
        0,
    ),
    (
        "for i in 1 2; do for j in a b; do continue 2; done; echo no; done; echo end",
        "end\n",
        0,
    ),
    (
        "{ echo a; echo b; }; (echo c; exit 4); echo $?",
        "a\nb\nc\n4\n",
        0,
    ),
    ("x=1; (x=2; echo $x); echo $x", "2\n1\n", 0),
    ("(exit 5)", "", 5),
    ("echo a | cat", "a\n", 0),
    ("printf 'c\\na\\nb\\n' | sort | head -n 2", "a\nb\n", 0),
    ("false | true; echo $?", "0\n", 0),
    ("true | false", "", 1),
    (
        "echo x > f; cat f; echo y >> f; cat < f; cat f | wc -l | tr -d ' '",
        "x\nx\ny\n2\n",
        0,
    ),
    ("{ echo out; echo err >&2; } 2>/dev/null", "out\n", 0),
    ("echo err 1>&2", "", 0),
    ("{ echo a; echo b >&2; } > f 2>&1; cat f", "a\nb\n", 0),
    ("cat nothing 2>/dev/null || echo none", "none\n", 0),
    ("cat <<EOF\na $((1+1))\n'b'\nEOF\n", "a 2\n'b'\n", 0),
    (
        "cat <<'EOF'\na $((1+1))\nEOF\necho after",
        "a $((1+1))\nafter\n",
        0,
    ),
    ("x=1 sh -c 'echo $x'; echo \"<$x>\"", "1\n<>\n", 0),
    (
        "x=1; sh -c 'echo \"<$x>\"'; export x; sh -c 'echo \"<$x>\"'",
        "<>\n<1>\n",
        0,
    ),
    (
        "export y=2; sh -c 'echo $y'; unset y; echo \"<$y>\"",
        "2\n<>\n",
        0,
    ),
    ("sh -c 'echo $0 $1 $#' name one two", "name one 2\n", 0),
    ("trap 'echo bye' EXIT; echo hi", "hi\nbye\n", 0),
    ("trap 'echo bye; exit 9' 0; exit 3", "bye\n", 9),
    (
        "trap 'echo got' USR1; kill -USR1 $$; echo after",
        "got\nafter\n",
        0,
    ),
    ("trap '' TERM; kill -TERM $$; echo alive", "alive\n", 0),
    (
        "(kill -9 $(sh -c 'echo $PPID')) 2>/dev/null; echo end",
        "end\n",
        0,
    ),
    ("sleep 10 & kill $!; wait $!; echo $?", "143\n", 0),
    ("sleep 0.01 & wait; echo done", "done\n", 0),
    ("(exit 3) & wait $!; echo $?", "3\n", 0),
    (
        "trap 'echo term; exit 5' TERM; (sleep 0.02; kill -TERM $$) & while :; do sleep 0.005; done",
        "term\n",
        5,
    ),
    (
        "trap 'echo t' TERM; (sleep 0.02; kill $$) & p=$!; sleep 5 & q=$!; wait $q; echo $?; kill $q",
        "t\n143\n",
        0,
    ),
    ("exec echo replaced; echo never", "replaced\n", 0),
    ("exec > f; echo hidden; cat f >&2", "", 0),
    ("exec 3>f; echo three >&3; exec 3>&-; cat f", "three\n", 0),
    ("echo 'a b c' | { read x y; echo \"$x-$y\"; }", "a-b c\n", 0),
    (
        "printf '1\\n2\\n3\\n' | while read l; do echo \"<$l>\"; done",
        "<1>\n<2>\n<3>\n",
        0,
    ),
    (
        "printf 'a\\\\b\\n' | { read -r l; printf %s \"$l\" | wc -c | tr -d ' '; }",
        "3\n",
        0,
    ),
    ("read x < /dev/null; echo $?", "1\n", 0),
    ("IFS=: ; x=a:b:c; set -- $x; echo $2 $#", "b 3\n", 0),
    (
        "IFS=:; echo 'p:q:r' | { read a b; echo $a; echo \"$b\"; }",
        "p\nq:r\n",
        0,
    ),
    (
        "[ 1 -lt 2 ] && [ a = a ] && [ -n x ] && [ -z '' ] && test ! -e none && echo ok",
        "ok\n",
        0,
    ),
    (
        "test; echo $?; test x; echo $?; test 1 -eq 2; echo $?",
        "1\n0\n1\n",
        0,
    ),
    (
        "touch f; [ -f f ] && [ ! -d f ] && [ ! -s f ] && mkdir d && [ -d d ] && echo ok",
        "ok\n",
        0,
    ),
    (
        "[ a = b -o c = c ]; echo $?; [ a = a -a c = d ]; echo $?",
        "0\n1\n",
        0,
    ),
    ("printf '%s-%d|' a 1 b 2; echo", "a-1|b-2|\n", 0),
    (
        "printf '%05d %5s %-5s| %x %o %%\\n' 42 ab cd 255 8",
        "00042    ab cd   | ff 10 %\n",
        0,
    ),
    ("printf 'a\\tb\\101\\n'", "a\tbA\n", 0),
    (
        "printf '%b' 'x\\ny\\n'; printf '%c\\n' hello",
        "x\ny\nh\n",
        0,
    ),
    ("printf '%.2s|%3d|%+d\\n' abcdef 7 5", "ab|  7|+5\n", 0),
    ("echo -n a; echo b", "ab\n", 0),
    ("case abc in a*) echo one;; *) echo two;; esac", "one\n", 0),
    (
        "case x in a|x) echo ax;; esac; case y in (z) echo;; esac; echo $?",
        "ax\n0\n",
        0,
    ),
    (
        "f() { echo \"$1 $#\"; return 3; }; f a b; echo $?",
        "a 2\n3\n",
        0,
    ),
    (
        "f() { x=$1; [ $1 = 0 ] || f $(($1-1)); }; f 5; echo $x",
        "0\n",
        0,
    ),
    (
        "f() { local v=in; echo $v; }; v=out; f; echo $v",
        "in\nout\n",
        0,
    ),
    (
        "echo ${none:-default} ${none-d2} ${x:=set} $x ${x:+alt} ${none:+no}.",
        "default d2 set set alt .\n",
        0,
    ),
    (
        "x=path/to/file.tar.gz; echo ${x#*/} ${x##*/} ${x%.*} ${x%%.*} ${#x}",
        "to/file.tar.gz file.tar.gz path/to/file.tar path/to/file 19\n",
        0,
    ),
    ("x=; echo \"${x:-empty}\" \"${x-unset}.\"", "empty .\n", 0),
    (
        "mkdir g; touch g/b.txt g/a.txt g/.h g/c; cd g; echo *.txt; echo *; echo .h* none*",
        "a.txt b.txt\na.txt b.txt c\n.h none*\n",
        0,
    ),
    ("echo [a-c]x '*' \"*\"", "[a-c]x * *\n", 0),
    ("set -e; false; echo never", "", 1),
    (
        "set -e; false || true; if false; then :; fi; ! true; echo ok",
        "ok\n",
        0,
    ),
    ("set -u; echo ${nothing-}; echo ok", "\nok\n", 0),
    ("eval 'x=1; echo $x'; eval echo '$x'", "1\n1\n", 0),
    ("cd /; pwd; cd tmp; cd ..; pwd", "/\n/\n", 0),
    ("nonsense 2>/dev/null; echo $?", "127\n", 0),
    ("/tmp 2>/dev/null; echo $?", "126\n", 0),
    ("command -v cd; type cd > /dev/null; echo $?", "cd\n0\n", 0),
    (
        "seq 3; seq 2 4 | tr '\\n' ' '; seq 5 -2 1 | tail -n 1",
        "1\n2\n3\n2 3 4 1\n",
        0,
    ),
    ("yes | head -n 3 | uniq -c | sed 's/^ *//'", "3 y\n", 0),
    (
        "seq 1 100000 | tail -n 1; seq 1 1000 | wc -l | tr -d ' '",
        "100000\n1000\n",
        0,
    ),
    (
        "printf 'a b\\n' | wc -w | tr -d ' '; printf abc | wc -c | tr -d ' '",
        "2\n3\n",
        0,
    ),
    (
        "printf 'hello' | tr a-z A-Z; printf 'aabb\\n' | tr -s ab; echo a1b2 | tr -dc 0-9",
        "HELLOab\n12",
        0,
    ),
    (
        "printf '3\\n10\\n2\\n' | sort -n | tr '\\n' ,; printf 'b\\na\\nb\\n' | sort -u | tr '\\n' ,; printf '1\\n2\\n' | sort -r | tr '\\n' ,",
        "2,3,10,a,b,2,1,",
        0,
    ),
    (
        "printf 'a:b:c\\n' | cut -d: -f2; echo abcdef | cut -c2-3",
        "b\nbc\n",
        0,
    ),
    (
        "printf 'one\\ntwo\\n' | grep t; printf 'x\\n' | grep -q y; echo $?; printf 'a.b\\nacb\\n' | grep -c 'a\\.b'",
        "two\n1\n1\n",
        0,
    ),
    (
        "echo 'foo bar' | sed 's/o/0/g; s/bar/baz/'; seq 5 | sed -n '2,3p'; seq 3 | sed 2d",
        "f00 baz\n2\n3\n1\n3\n",
        0,
    ),
    (
        "printf hello | sha256sum | cut -d' ' -f1",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\n",
        0,
    ),
    (
        "printf hello | base64; printf aGVsbG8= | base64 -d",
        "aGVsbG8=\nhello",
        0,
    ),
    (
        "dd if=/dev/zero bs=1k count=3 2>/dev/null | wc -c | tr -d ' '",
        "3072\n",
        0,
    ),
    ("head -c 100 /dev/urandom | wc -c | tr -d ' '", "100\n", 0),
    (
        "echo a > x; cp x y; mv y z; cat z; [ -e y ]; echo $?; rm x z; ls | wc -l | tr -d ' '",
        "a\n1\n0\n",
        0,
    ),
    (
        "mkdir -p a/b/c; touch a/b/f; ls a; ls a/b; find a | sort; rm -r a; ls",
        "b\nc\nf\na\na/b\na/b/c\na/b/f\n",
        0,
    ),
    (
        "echo 1 > a; ln -s a l; cat l; readlink l; ln a h; echo 2 > a; cat h; [ -h l ] && echo link",
        "1\na\n2\nlink\n",
        0,
    ),
    (
        "echo '#!/bin/sh\necho run $1' > s; chmod +x s; ./s arg; stat -c %a s",
        "run arg\n755\n",
        0,
    ),
    ("echo 'echo sourced $x' > s; x=1; . ./s", "sourced 1\n", 0),
    (
        "basename /a/b.c .c; dirname /a/b/c; dirname x; basename /",
        "b\n/a/b\n.\n/\n",
        0,
    ),
    ("umask 077; touch p; stat -c %a p; umask", "600\n0077\n", 0),
    ("mkfifo p; echo through > p & cat p", "through\n", 0),
    ("echo x | tee a b | cat - a b", "x\nx\nx\n", 0),
    (
        "printf 'a b\\nc\\n' | xargs echo; printf '1\\n2\\n' | xargs -n 1 echo n",
        "a b c\nn 1\nn 2\n",
        0,
    ),
    ("env -i A=1 /usr/bin/env", "A=1\n", 0),
    ("sleep 0; sleep 0.01 && echo slept", "slept\n", 0),
    (
        "for i in 1 2 3; do echo $i; done | while read x; do echo \"r$x\"; done > f; cat f",
        "r1\nr2\nr3\n",
        0,
    ),
    (
        "i=0; while true; do i=$((i+1)); [ $i -ge 2000 ] && break; done; echo $i",
        "2000\n",
        0,
    ),
    (
        "x='*'; echo \"$x\" '?'; y=\"a   b\"; echo \"$y\" $y",
        "* ?\na   b a b\n",
        0,
    ),
    ("echo a#b # comment\n# another\necho c", "a#b\nc\n", 0),
    ("echo a\\\nb", "ab\n", 0),
    ("echo $'x' 2>/dev/null | wc -l | tr -d ' '", "1\n", 0),
    ("readonly r=1; (r=2) 2>/dev/null; echo $? $r", "2 1\n", 0),
    ("wait; echo $?", "0\n", 0),
    ("echo \"${x:-$(echo a b)}\" ${x:-'c  d'}", "a b c  d\n", 0),
    ("sh -c 'exit 300'; echo $?", "44\n", 0),
    ("sh -c 'kill -TERM $$'; echo $?", "143\n", 0),
    (
        "{ sleep 5; } & sleep 0.01; kill -KILL $!; wait $! 2>/dev/null; echo $?",
        "137\n",
        0,
    ),
    (
        "for i in $(seq 1 3); do echo line $i; done",
        "line 1\nline 2\nline 3\n",
        0,
    ),
    (
        "i=0; while [ $i -lt 5000 ]; do echo \"line $i\"; i=$((i+1)); done | wc -l | tr -d ' '",
        "5000\n",
        0,
    ),
    ("echo out; echo err 1>&2; exit 3", "out\n", 3),
    ("test -t 0 && echo tty || echo notty", "notty\n", 0),
    (
        "sleep 0.05 & p=$!; kill -0 $p && echo alive; wait $p; kill -0 $p 2>/dev/null || echo dead",
        "alive\ndead\n",
        0,
    ),
    (
        "( sleep 0.02; echo late ) & echo early; wait",
        "early\nlate\n",
        0,
    ),
    (
        "trap 'rm -f f; echo cleaned' EXIT; touch f; false; exit 2",
        "cleaned\n",
        2,
    ),
    (
        "set -- -a -b; while [ $# -gt 0 ]; do case $1 in -a) echo A;; -b) echo B;; esac; shift; done",
        "A\nB\n",
        0,
    ),
    (
        "echo \"$(printf 'a\\nb')\" | while read -r x; do echo \"[$x]\"; done",
        "[a]\n[b]\n",
        0,
    ),
    ("exec 2>&1; echo err >&2", "err\n", 0),
    ("printf 'x%.0s' 1 2 3; echo", "xxx\n", 0),
    (
        "printf abc > f; stat -c %s f; : > f; [ -s f ] || echo empty",
        "3\nempty\n",
        0,
    ),
    (
        "mkdir a b; touch a/x.txt b/y.txt b/z; find . -type f -name '*.txt' | sort",
        "./a/x.txt\n./b/y.txt\n",
        0,
    ),
    ("date +%s | grep -c '^[0-9]*$'", "1\n", 0),
    (
        "printf '1\\n2\\n' > f; while read -r l; do echo \"got $l\"; done < f",
        "got 1\ngot 2\n",
        0,
    ),
    (
        "cat > f << EOF\none\n\ttwo\nEOF\ncat f; wc -l < f | tr -d ' '",
        "one\n\ttwo\n2\n",
        0,
    ),
    ("cat <<-EOF\n\ttabs\n\tEOF\necho x", "tabs\nx\n", 0),
    (
        "f() { return 2; }; f || echo \"no $?\"; f && echo yes; echo $?",
        "no 2\n2\n",
        0,
    ),
    ("(trap 'echo sub' EXIT); echo main", "sub\nmain\n", 0),
    ("{ exit 4; } | cat; echo $?", "0\n", 0),
    ("cat /dev/null; echo x > /dev/null; echo $?", "0\n", 0),
    (
        "trap 'echo int' INT; kill -INT $$; trap - INT; echo end",
        "int\nend\n",
        0,
    ),
    ("a=1 b=2; echo $a$b; a=3 true; echo $a", "12\n1\n", 0),
    (
        "[ \"$(cat <<EOF\nx\nEOF\n)\" = x ] && echo same",
        "same\n",
        0,
    ),
    ("yes x | head -c 10 | tr '\\n' .; echo", "x.x.x.x.x.\n", 0),
    (
        "seq 10 | sed -n '$p'; seq 10 | tail -n +9; seq 10 | head -n 2 | tail -n 1",
        "10\n9\n10\n2\n",
        0,
    ),
    (
        "touch f; chmod 640 f; chmod u+x f; stat -c %a f",
        "740\n",
        0,
    ),
    (
        "sleep 5 & p=$!; (sleep 0.01; kill -9 $p) & wait $p; echo $?",
        "137\n",
        0,
    ),
    (
        "echo a; (echo b; exec echo c; echo never); echo d",
        "a\nb\nc\nd\n",
        0,
    ),
    ("for f in *; do echo \"<$f>\"; done", "<*>\n", 0),
    ("unset x; x=${x-1}; x=$((x+1)); echo $x", "2\n", 0),
    (
        "echo one > f; echo two > g; cat f g - < f",
        "one\ntwo\none\n",
        0,
    ),
    (
        "rm -f none; echo $?; rmdir none 2>/dev/null; echo $?",
        "0\n1\n",
        0,
    ),
    (
        "i=1; until [ $i -gt 3 ]; do echo $i; i=$((i + 1)); done > f; sort -r f | tr '\\n' ' '",
        "3 2 1 ",
        0,
    ),
    ("while :; do echo y; done | head -n 2", "y\ny\n", 0),
];

#[test]
fn scripts_do_what_posix_says() {
    let mut wrong = Vec::new();
    for (script, stdout, status) in SCRIPTS {
        let Ran {
            stdout: out,
            stderr,
            status: code,
        } = Container::new().sh(script);
        if (out.as_str(), code) != (*stdout, *status) {
            wrong.push(format!("{script}\n  {out:?} {code} {stderr:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The expectations above are not ours alone: a real shell has them too.
#[test]
fn the_machines_own_shell_agrees() {
    // A runner in the background has its children ignore these, and a shell cannot trap what was ignored
    // when it began.
    let real_sh = || {
        let mut sh = Command::new("env");
        sh.args(["--default-signal=INT,QUIT", "sh", "-c"]);
        sh
    };
    match real_sh().arg("exit 0").output() {
        Ok(probe) if probe.status.success() => {}
        _ => {
            println!("SKIPPED: this machine has no sh, or no env of GNU's");
            return;
        }
    }
    let root = std::env::temp_dir().join(format!("scripts-{}", std::process::id()));
    let mut wrong = Vec::new();
    for (index, (script, stdout, status)) in SCRIPTS.iter().enumerate() {
        let directory = root.join(index.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        let output = real_sh()
            .arg(script)
            .current_dir(&directory)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let code = output.status.code().unwrap_or(-1);
        if (out.as_ref(), code) != (*stdout, i32::from(*status)) {
            wrong.push(format!("{script}\n  {out:?} {code}"));
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
    assert!(wrong.is_empty(), "the real sh:\n{}", wrong.join("\n"));
}

/// Pieces of scripts, so that chance makes something like them.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "if", "then", "else", "fi", "while", "do", "done", "for", "in", "case", "esac", "{", "}",
        "(", ")", ";", ";;", "&", "&&", "||", "|", "!", "\n", " ", "$", "$(", "$((", "))", "${",
        ":-", "#", "%", "\"", "'", "`", "\\", "<", ">", ">>", "<<EOF\n", "EOF\n", "2>&1", "x",
        "echo", "=", "[", "]", "*", "f()", "\u{e9}",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics_the_parser(text in pieces()) {
        let _ = super::parser::parse(&text);
        let mut lines = super::parser::Parser::new(&text);
        while let Ok(Some(_)) = lines.next_line() {}
    }

    #[test]
    fn no_expression_panics(text in "[-+*/%<>=!&|^~?:() x0-9]{0,40}") {
        let script = format!("x=3; echo $(({text}))");
        let _ = Container::new().sh(&script);
    }

    #[test]
    fn no_format_panics_printf(format in "[%a-z0-9.*\\\\ -]{0,20}", word in "[-x0-9]{0,8}") {
        let _ = Container::new().run(&["printf", &format, &word, &word], b"");
    }
}

#[test]
fn nothing_that_nests_exhausts_the_stack() {
    let deep =
        |open: &str, close: &str| format!("{}:{}", open.repeat(20_000), close.repeat(20_000));
    for script in [
        deep("$(", ")"),
        deep("${x:-", "}"),
        deep("\"${x:-", "}\""),
        deep("(", ")"),
        deep("{ ", ";}"),
        deep("if ", "; then :; fi"),
        format!("test {} x", "\\( ".repeat(5_000)),
        "f() { f; }; f".to_owned(),
        "f() { $(f); }; f".to_owned(),
        "eval 'x=\"$x eval\"; eval \"$x\"'".to_owned(),
        "! ".repeat(20_000) + "true",
    ] {
        let start: String = script.chars().take(20).collect();
        println!("{start}");
        let ran = Container::new().sh(&script);
        assert!(ran.stdout.is_empty(), "{start}");
    }
}

/// What busybox says, for those who look for its words.
#[test]
fn complaints_are_worded_as_busybox_words_them() {
    for (script, stderr, status) in [
        ("nonsense", "sh: nonsense: not found\n", 127),
        ("/bin/nonsense", "sh: /bin/nonsense: not found\n", 127),
        ("/etc", "sh: /etc: Permission denied\n", 126),
        (
            "cat /none",
            "cat: can't open '/none': No such file or directory\n",
            1,
        ),
        ("ls /none", "ls: /none: No such file or directory\n", 1),
        (
            "rm /none",
            "rm: can't remove '/none': No such file or directory\n",
            1,
        ),
        (
            "mkdir /etc",
            "mkdir: can't create directory '/etc': File exists\n",
            1,
        ),
        (
            "cd /none",
            "sh: cd: can't cd to /none: No such file or directory\n",
            2,
        ),
        (
            "echo x > /none/x",
            "sh: can't create /none/x: nonexistent directory\n",
            1,
        ),
        ("cat < /none", "sh: can't open /none: no such file\n", 1),
        ("if", "sh: syntax error: unexpected end of file\n", 2),
        (
            "kill 4000",
            "sh: kill: can't kill pid 4000: No such process\n",
            1,
        ),
        ("whoami; id", "", 0),
    ] {
        let ran = Container::new().sh(script);
        assert_eq!(
            (ran.stderr.as_str(), ran.status),
            (stderr, status),
            "{script}"
        );
    }
    let ran = Container::new().sh("whoami; id; hostname; uname; nproc; date +%Y; tty; pwd");
    assert_eq!(
        ran.stdout,
        "root\nuid=0(root) gid=0(root) groups=0(root),10(wheel)\nbox\nLinux\n2\n2023\nnot a tty\n/tmp\n"
    );
}
