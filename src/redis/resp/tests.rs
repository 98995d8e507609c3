use proptest::prelude::*;

use super::*;

fn rendered(render: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    render(&mut out);
    String::from_utf8(out).expect("ASCII").replace("\r\n", " ")
}

#[test]
fn commands_are_arrays_of_bulk_strings() {
    assert_eq!(rendered(|out| command::command(&[b"PING"], out)), "*1 $4 PING ");
    assert_eq!(rendered(|out| command::command(&[b"SET", b"k", b""], out)), "*3 $3 SET $1 k $0  ");
    for (value, expected) in [
        (0, "$1 0 "),
        (7, "$1 7 "),
        (-10, "$3 -10 "),
        (i64::MAX, "$19 9223372036854775807 "),
        (i64::MIN, "$20 -9223372036854775808 "),
    ] {
        assert_eq!(rendered(|out| command::integer(value, out)), expected);
    }
}

#[test]
fn a_script_is_called_by_name_or_by_text() {
    let script = Script::new("return 1");
    let sha1 = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
    assert_eq!(script.sha1(), sha1);
    assert_eq!(script.text(), "return 1");
    assert_eq!(rendered(|out| script.load(out)), "*3 $6 SCRIPT $4 LOAD $8 return 1 ");
    let args = [Arg::Integer(-5), Arg::Bytes(b"a b")];
    let tail = "$1 2 $1 k $2 kk $2 -5 $3 a b ";
    let by_name = rendered(|out| script.evalsha(&[b"k", b"kk"], &args, out));
    assert_eq!(by_name, format!("*7 $7 EVALSHA $40 {sha1} {tail}"));
    let by_text = rendered(|out| script.eval(&[b"k", b"kk"], &args, out));
    assert_eq!(by_text, format!("*7 $4 EVAL $8 return 1 {tail}"));
    assert_eq!(rendered(|out| script.eval(&[], &[], out)), "*3 $4 EVAL $8 return 1 $1 0 ");
}

/// What a value says, in one line.
fn told(value: Value<'_>) -> String {
    match value {
        Value::Nil => "nil".to_owned(),
        Value::Integer(value) => value.to_string(),
        Value::Simple(text) => format!("+{}", text.escape_ascii()),
        Value::Bulk(text) => format!("${}", text.escape_ascii()),
        Value::Error(text) => format!("-{}", text.escape_ascii()),
        Value::Array(elements) => format!("[{}]", elements.map(told).collect::<Vec<_>>().join(" ")),
    }
}

/// What a stream that arrives in these pieces says.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Result<bool, Malformed>) {
    let mut decoder = Decoder::default();
    let mut values = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_reply() {
                Ok(Some(reply)) => values.push(told(reply.value())),
                Ok(None) => break,
                Err(malformed) => return (values, Err(malformed)),
            }
        }
    }
    (values, Ok(decoder.is_empty()))
}

fn check(stream: &str, expected: &[&str]) {
    let (values, end) = decode([stream.as_bytes()]);
    assert_eq!(values, expected, "{stream:?}");
    assert_eq!(end, Ok(true), "{stream:?}");
    let bytewise = decode(stream.as_bytes().chunks(1));
    assert_eq!(bytewise, (values, Ok(true)), "{stream:?}, byte by byte");
}

#[test]
fn replies_are_read() {
    check("+OK\r\n", &["+OK"]);
    check("+\r\n", &["+"]);
    check("-ERR no\r\n", &["-ERR no"]);
    check(":0\r\n:-12\r\n:9223372036854775807\r\n", &["0", "-12", "9223372036854775807"]);
    check("$5\r\nhello\r\n", &["$hello"]);
    check("$0\r\n\r\n", &["$"]);
    check("$4\r\n\r\n\r\n\r\n", &["$\\r\\n\\r\\n"]);
    check("$-1\r\n*-1\r\n", &["nil", "nil"]);
    check("*0\r\n", &["[]"]);
    check("*3\r\n:1\r\n:2\r\n:3\r\n", &["[1 2 3]"]);
    check("*2\r\n*2\r\n:1\r\n*0\r\n$-1\r\n+x\r\n", &["[[1 []] nil]", "+x"]);
    check("*2\r\n*-1\r\n-OOM no\r\n:5\r\n", &["[nil -OOM no]", "5"]);
    check("*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", &["[[[[1]]]]"]);
}

fn check_unfinished(stream: &str) {
    assert_eq!(decode([stream.as_bytes()]), (vec![], Ok(stream.is_empty())), "{stream:?}");
}

#[test]
fn unfinished_replies_are_waited_for() {
    for stream in ["", "+", "+OK", "+OK\r", ":1", "$", "$5", "$5\r", "$5\r\nhell", "$5\r\nhello\r", "*", "*2\r\n:1\r\n"]
    {
        check_unfinished(stream);
    }
    check_unfinished(&format!("${REPLY}\r\n", REPLY = decoder::REPLY_MAX));
}

fn check_malformed(stream: &str) {
    assert_eq!(decode([stream.as_bytes()]), (vec![], Err(Malformed)), "{stream:?}");
    assert_eq!(decode(stream.as_bytes().chunks(1)), (vec![], Err(Malformed)), "{stream:?}, byte by byte");
}

#[test]
fn anything_else_is_malformed() {
    for stream in [
        "HTTP/1.1 400 Bad Request\r\n",
        "\r\n",
        ">2\r\n+push\r\n+x\r\n",
        "%1\r\n+a\r\n:1\r\n",
        "_\r\n",
        ":\r\n",
        ":1a\r\n",
        ":9223372036854775808\r\n",
        "$\r\n",
        "$-2\r\n",
        "$+5\r\nhello\r\n",
        "$5a\r\n",
        "$99999\r\n",
        "$18446744073709551616\r\n",
        "$9223372036854775807\r\n",
        "*99999\r\n",
        "*-2\r\n",
        "*1\rx",
        "$5\r\nhelloxx",
        "$00000000000000000000000000000000000000005\r\nhello\r\n",
        "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    ] {
        check_malformed(stream);
    }
    check_malformed(&format!("+{}", "x".repeat(decoder::REPLY_MAX)));
    check_malformed(&format!("*60000\r\n{}", ":1\r\n".repeat(20_000)));
    check_malformed(&format!("${0}\r\n{1}\r\n", decoder::REPLY_MAX, "x".repeat(decoder::REPLY_MAX)));
}

#[test]
fn what_comes_before_malformed_bytes_counts() {
    let (values, end) = decode([&b"+OK\r\n:1\r\nnonsense"[..]]);
    assert_eq!((values, end), (vec!["+OK".to_owned(), "1".to_owned()], Err(Malformed)));
}

fn reply(stream: &str) -> Reply {
    let mut decoder = Decoder::default();
    decoder.push(stream.as_bytes());
    decoder.next_reply().expect("well-formed").expect("whole")
}

#[test]
fn replies_are_read_as_what_is_expected() {
    assert_eq!(reply(":7\r\n").integer(), Some(7));
    assert_eq!(reply("+7\r\n").integer(), None);
    assert_eq!(reply("+OK\r\n").text(), Some(&b"OK"[..]));
    assert_eq!(reply("$2\r\nOK\r\n").text(), Some(&b"OK"[..]));
    assert_eq!(reply(":7\r\n").text(), None);
    assert_eq!(reply("*2\r\n:1\r\n:-2\r\n").integers(), Some([1, -2]));
    assert_eq!(reply("*2\r\n:1\r\n:-2\r\n").integers::<1>(), None);
    assert_eq!(reply("*2\r\n:1\r\n:-2\r\n").integers::<3>(), None);
    assert_eq!(reply("*2\r\n:1\r\n$1\r\n2\r\n").integers::<2>(), None);
    assert_eq!(reply("*0\r\n").integers(), Some([]));
    assert_eq!(reply(":1\r\n").integers::<1>(), None);
}

#[test]
fn errors_have_a_kind() {
    for (text, expected) in [
        ("NOSCRIPT No matching script. Please use EVAL.", Refusal::NoScript),
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: 5c, on @user_script:1.",
            Refusal::OutOfMemory,
        ),
        ("READONLY You can't write against a read only replica.", Refusal::ReadOnly),
        ("LOADING Redis is loading the dataset in memory", Refusal::Loading),
        ("BUSY Redis is busy running a script.", Refusal::Busy),
        ("NOAUTH Authentication required.", Refusal::Unauthenticated),
        ("WRONGPASS invalid username-password pair or user is disabled.", Refusal::WrongPassword),
        ("NOPERM this user has no permissions to run the 'evalsha' command", Refusal::NotPermitted),
        ("MOVED 3999 127.0.0.1:6381", Refusal::Cluster),
        ("ASK 3999 127.0.0.1:6381", Refusal::Cluster),
        ("CLUSTERDOWN The cluster is down", Refusal::ClusterDown),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Refusal::MasterDown),
        ("MISCONF Redis is configured to save RDB snapshots", Refusal::WritesStopped),
        ("ERR unknown command", Refusal::Other),
        ("OOMPH", Refusal::Other),
        ("OOM", Refusal::OutOfMemory),
        ("", Refusal::Other),
        (
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command not allowed",
            Refusal::OutOfMemory,
        ),
        ("ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write", Refusal::ReadOnly),
        ("ERR Error running script (call to f_0): @user_script:1: attempt to index nil", Refusal::Other),
    ] {
        assert_eq!(Refusal::of(text.as_bytes()), expected, "{text}");
    }
}

/// A well-formed frame.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        any::<i64>().prop_map(|value| format!(":{value}\r\n").into_bytes()),
        "[ -~]{0,20}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        "[A-Z]{1,9} [ -~]{0,20}".prop_map(|text| format!("-{text}\r\n").into_bytes()),
        Just(b"$-1\r\n".to_vec()),
        Just(b"*-1\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| {
            let mut out = Vec::new();
            command::bulk(&bytes, &mut out);
            out
        }),
    ];
    scalar.prop_recursive(decoder::DEPTH_MAX as u32, 32, 4, |inner| {
        prop::collection::vec(inner, 0..4).prop_map(|frames| {
            let mut out = Vec::new();
            command::array(frames.len(), &mut out);
            frames.iter().for_each(|frame| out.extend_from_slice(frame));
            out
        })
    })
}

/// `stream` cut at these places, each taken modulo its length.
fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_decodes_the_same(frames in prop::collection::vec(frame(), 0..8), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
        let stream = frames.concat();
        let whole = decode([&stream[..]]);
        prop_assert_eq!(whole.0.len(), frames.len());
        prop_assert_eq!(whole.1, Ok(true));
        prop_assert_eq!(decode(cut(&stream, &cuts)), whole);
    }

    #[test]
    fn any_bytes_decode_the_same_however_split(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"*$+-:0123\r\n\r\n"[..])], 0..200),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        prop_assert_eq!(decode(cut(&bytes, &cuts)), decode([&bytes[..]]));
    }

    #[test]
    fn integers_are_rendered_as_the_standard_library_does(value: i64) {
        let text = value.to_string();
        prop_assert_eq!(rendered(|out| command::integer(value, out)), format!("${} {text} ", text.len()));
    }

    #[test]
    fn any_error_has_a_kind(text in prop::collection::vec(any::<u8>(), 0..60)) {
        Refusal::of(&text);
    }
}
