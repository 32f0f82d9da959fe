//! Layered configuration: defaults, a role's own defaults, then a TOML file, then `HEADWATER_*` variables, then flags; unknown keys are errors.
//!
//! The schema is the caller's: any struct that deserializes with `deny_unknown_fields` and defaults. A variable's name is
//! its key in capitals, with two underscores for the dot: `HEADWATER_RTMP__LISTEN` sets `rtmp.listen`, `HEADWATER_ID` sets
//! `id`. Its value is read as the key's type wants it: text as it stands, a TOML literal (`5`, `true`, `["a", "b"]`), or a
//! list separated by commas, of literals (`0,200`) or text. Every layer is checked by itself, so that an error names the line, variable or flag at fault.

mod schema;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

pub use schema::keys;

/// The prefix of the variables that are read.
pub const ENV_PREFIX: &str = "HEADWATER_";

/// Starts of variables that are no configuration keys, because something else reads them.
const ENV_RESERVED: &[&str] = &["HEADWATER_CONFIG", "HEADWATER_PROBE_", "HEADWATER_TEST_"];

/// One value from outside the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The key, with dots: `rtmp.listen`.
    pub key: String,
    /// What it is set to.
    pub value: Value,
    /// Where it came from, for errors: `--rtmp`.
    pub from: String,
}

/// Where values come from, in order of rank: later layers win.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// What a role changes in the schema's defaults; everything else wins over it.
    pub base: Vec<Override>,
    /// The TOML file, if one is named. It must exist then.
    pub file: Option<PathBuf>,
    /// The process's environment, or what a test gives for it. Only names that start with [`ENV_PREFIX`] are read.
    pub env: Vec<(String, String)>,
    /// What flags set.
    pub flags: Vec<Override>,
}

/// Why the configuration can't be used. The text names the place and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A value or key is wrong.
    #[error("{place}: {message}")]
    Invalid {
        /// `file:line:column`, a variable's name or a flag.
        place: String,
        /// What is wrong.
        message: String,
    },
}

/// Loads a configuration from its layers.
///
/// # Errors
/// [`Error`]: tell the operator; nothing was started.
pub fn load<T: DeserializeOwned>(layers: &Layers) -> Result<T, Error> {
    let keys = keys::<T>();
    let mut merged = Table::new();
    for default in &layers.base {
        set(&mut merged, &default.key, default.value.clone()).map_err(|message| {
            Error::Invalid {
                place: default.from.clone(),
                message,
            }
        })?;
    }
    if let Some(path) = &layers.file {
        merge(&mut merged, read_file::<T>(path, &keys)?);
    }
    for (name, text) in &layers.env {
        if let Some(key) = env_key(name) {
            let value = typed::<T>(&key, text).map_err(|error| Error::Invalid {
                place: name.clone(),
                message: explain(error.message(), &keys, &key, variable),
            })?;
            set(&mut merged, &key, value).map_err(|message| Error::Invalid {
                place: name.clone(),
                message,
            })?;
        }
    }
    for flag in &layers.flags {
        let invalid = |message| Error::Invalid {
            place: flag.from.clone(),
            message,
        };
        check::<T>(&flag.key, &flag.value)
            .map_err(|error| invalid(explain(error.message(), &keys, &flag.key, str::to_owned)))?;
        set(&mut merged, &flag.key, flag.value.clone()).map_err(invalid)?;
    }
    merged
        .try_into()
        .map_err(|error: toml::de::Error| Error::Invalid {
            place: "configuration".to_owned(),
            message: worded(error.message()),
        })
}

/// The process's variables that [`Layers::env`] wants.
pub fn process_env() -> Vec<(String, String)> {
    let own = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        name.starts_with(ENV_PREFIX)
            .then(|| (name, value.to_string_lossy().into_owned()))
    });
    let mut own: Vec<_> = own.collect();
    own.sort();
    own
}

fn read_file<T: DeserializeOwned>(path: &Path, keys: &[String]) -> Result<Table, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let invalid = |error: toml::de::Error| {
        let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
        Error::Invalid {
            place: format!("{}:{line}:{column}", path.display()),
            message: explain(error.message(), keys, &section(&text, line), str::to_owned),
        }
    };
    let table: Table = toml::from_str(&text).map_err(invalid)?;
    let _: T = toml::from_str(&text).map_err(invalid)?;
    Ok(table)
}

/// The configuration key that a variable sets, if it sets one.
fn env_key(name: &str) -> Option<String> {
    let key = name.strip_prefix(ENV_PREFIX)?;
    if ENV_RESERVED.iter().any(|start| name.starts_with(start)) || is_service_link(key) {
        return None;
    }
    Some(key.to_ascii_lowercase().replace("__", "."))
}

/// The variable that sets a configuration key.
fn variable(key: &str) -> String {
    let name = key.to_ascii_uppercase().replace('.', "__");
    format!("{ENV_PREFIX}{name}")
}

/// Kubernetes sets such variables in every pod for every service of the namespace (`HEADWATER_EDGE_PORT_80_TCP_ADDR` for a
/// service `headwater-edge`). They are nobody's mistake and must not keep a node from starting.
fn is_service_link(key: &str) -> bool {
    let tail_after_port = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
            && parts.next().is_none()
    };
    !key.contains("__")
        && (key.ends_with("_SERVICE_HOST")
            || key.ends_with("_SERVICE_PORT")
            || key.contains("_SERVICE_PORT_")
            || key == "PORT"
            || key.ends_with("_PORT")
            || key.strip_prefix("PORT_").is_some_and(tail_after_port)
            || key
                .split_once("_PORT_")
                .is_some_and(|(_, rest)| tail_after_port(rest)))
}

/// Reads a variable's text as the type that the key has.
fn typed<T: DeserializeOwned>(key: &str, text: &str) -> Result<Value, toml::de::Error> {
    let plain = Value::String(text.to_owned());
    let error = match check::<T>(key, &plain) {
        Ok(()) => return Ok(plain),
        Err(error) => error,
    };
    let toml = |literal: &str| {
        toml::from_str::<Table>(&format!("value = {literal}"))
            .ok()
            .and_then(|mut table| (table.len() == 1).then(|| table.remove("value")).flatten())
    };
    let text = text.trim();
    let literals = toml(&format!("[{text}]"));
    let texts = Value::Array(
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Value::String(item.to_owned()))
            .collect(),
    );
    // Of a list what matters is what is wrong with its items, the last way that they were read.
    let list_wanted = error.message().ends_with("expected a sequence")
        || error.message().contains("expected an array");
    let mut wrong = error;
    for value in [toml(text), Some(texts), literals].into_iter().flatten() {
        match check::<T>(key, &value) {
            Ok(()) => return Ok(value),
            Err(error) if list_wanted && value.is_array() => wrong = error,
            Err(_) => {}
        }
    }
    Err(wrong)
}

/// Whether the schema takes this one value, all else being default.
fn check<T: DeserializeOwned>(key: &str, value: &Value) -> Result<(), toml::de::Error> {
    let mut table = Table::new();
    // A fresh table has nothing in the way of the key.
    let _ = set(&mut table, key, value.clone());
    table.try_into::<T>().map(drop)
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section.to_owned())
                .or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => set(inner, rest, value),
                _ => Err(format!("`{section}` is no section")),
            }
        }
    }
}

/// Puts `over` on top: sections are merged key by key, everything else is replaced.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

/// The section that a line belongs to, with a dot behind it, or nothing at the top.
fn section(text: &str, line: usize) -> String {
    text.lines()
        .take(line)
        .filter_map(|line| line.trim().strip_prefix('[')?.split_once(']'))
        .last()
        .map(|(name, _)| format!("{}.", name.trim()))
        .unwrap_or_default()
}

/// What the deserializer calls things, and what operators do.
const WORDS: &[(&str, &str)] = &[
    ("expected usize", "expected a whole number from 0"),
    ("expected u64", "expected a whole number from 0"),
    ("expected u32", "expected a whole number from 0"),
    ("expected u16", "expected a whole number from 0 to 65535"),
    ("expected u8", "expected a whole number from 0 to 255"),
    ("expected f64", "expected a number"),
    ("expected a boolean", "expected true or false"),
    ("expected a sequence", "expected a list"),
    (
        "invalid socket address syntax",
        "this is no ADDRESS:PORT such as 0.0.0.0:8080; names aren't looked up",
    ),
    (
        "invalid IP address syntax",
        "this is no IP address such as 203.0.113.7; names aren't looked up",
    ),
];

fn worded(message: &str) -> String {
    let found = WORDS.iter().find_map(|(theirs, ours)| {
        let before = message.trim_end().strip_suffix(theirs)?;
        Some(format!("{before}{ours}"))
    });
    found.unwrap_or_else(|| {
        message.replace("expected an array of length", "expected a list of length")
    })
}

/// Words an error of the deserializer for an operator: an unknown key gets the nearest known one beside it, spelled as `spelling` says.
fn explain(message: &str, keys: &[String], near: &str, spelling: fn(&str) -> String) -> String {
    if let Some((given, _)) = message.split_once("expected struct ") {
        let inside = |key: &&String| {
            key.strip_prefix(near)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        return match keys.iter().find(inside) {
            Some(key) => format!(
                "this is a section; did you mean one of its keys, such as `{}`?",
                spelling(key)
            ),
            None => format!("{given}expected a section"),
        };
    }
    let Some(unknown) = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next())
    else {
        return worded(message);
    };
    let section = near.rsplit_once('.').map_or("", |(section, _)| section);
    // In a file, the header of an unknown section is itself on the line.
    let section = if section == unknown { "" } else { section };
    let full = if section.is_empty() {
        unknown.to_owned()
    } else {
        format!("{section}.{unknown}")
    };
    let mut text = format!("unknown key `{full}`");
    if let Some(suggestion) = suggest(&full, unknown, keys) {
        text.push_str(&format!("; did you mean `{}`?", spelling(suggestion)));
    }
    text
}

/// The known key that an unknown one was probably meant to be: the same name in another section, or the nearest spelling.
fn suggest<'k>(full: &str, unknown: &str, keys: &'k [String]) -> Option<&'k str> {
    let names: Vec<&str> = keys
        .iter()
        .flat_map(|key| {
            let section = key.split_once('.').map(|(section, _)| section);
            [Some(key.as_str()), section].into_iter().flatten()
        })
        .collect();
    let by_spelling = names
        .iter()
        .map(|&name| (distance(full, name), name))
        .min()
        // Of three letters one may be wrong, of four and more two.
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 4).min(name.len() / 2));
    let elsewhere = || {
        names
            .iter()
            .copied()
            .find(|name| name.rsplit('.').next() == Some(unknown))
    };
    by_spelling.map(|(_, name)| name).or_else(elsewhere)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, &cb) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Root {
        id: Option<String>,
        rtmp: Rtmp,
        edge: Edge,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Rtmp {
        listen: SocketAddr,
        chunk_bytes: u32,
    }

    impl Default for Rtmp {
        fn default() -> Self {
            Self {
                listen: ([0, 0, 0, 0], 1935).into(),
                chunk_bytes: 60_000,
            }
        }
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Edge {
        public_ip: Vec<std::net::IpAddr>,
        shards: Option<u16>,
        ice: bool,
        delay: Option<[u16; 2]>,
    }

    fn env(pairs: &[(&str, &str)]) -> Layers {
        Layers {
            env: pairs
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            ..Layers::default()
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, Layers) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("h.toml");
        std::fs::write(&path, text).expect("written");
        let layers = Layers {
            file: Some(path),
            ..Layers::default()
        };
        (dir, layers)
    }

    fn error(layers: &Layers) -> String {
        load::<Root>(layers).expect_err("must fail").to_string()
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let (_dir, mut layers) =
            file("id = 'file'\n[rtmp]\nlisten = '127.0.0.1:1'\nchunk_bytes = 1\n");
        layers.env = env(&[("HEADWATER_RTMP__LISTEN", "127.0.0.1:2")]).env;
        let from_env: Root = load(&layers).expect("loads");
        assert_eq!(from_env.rtmp.listen.port(), 2);
        layers.flags.push(Override {
            key: "rtmp.listen".into(),
            value: "127.0.0.1:3".into(),
            from: "--rtmp".into(),
        });
        let all: Root = load(&layers).expect("loads");
        assert_eq!(all.rtmp.listen.port(), 3);
        assert_eq!((all.rtmp.chunk_bytes, all.id.as_deref()), (1, Some("file")));
        assert_eq!(all.edge, Edge::default());
    }

    #[test]
    fn the_file_wins_over_a_roles_defaults_key_by_key() {
        let (_dir, mut layers) = file("[edge]\nshards = 2\n");
        for (key, value) in [("edge.shards", Value::from(9)), ("edge.ice", true.into())] {
            layers.base.push(Override {
                key: key.into(),
                value,
                from: "role".into(),
            });
        }
        let root: Root = load(&layers).expect("loads");
        assert_eq!((root.edge.shards, root.edge.ice), (Some(2), true));
    }

    #[test]
    fn variables_take_the_type_of_their_key() {
        let layers = env(&[
            ("HEADWATER_EDGE__ICE", "true"),
            ("HEADWATER_EDGE__PUBLIC_IP", "10.0.0.1, ::1"),
            ("HEADWATER_EDGE__SHARDS", "4"),
            ("HEADWATER_ID", "7"),
        ]);
        let root: Root = load(&layers).expect("loads");
        assert_eq!(root.id.as_deref(), Some("7"), "text stays text");
        assert_eq!((root.edge.shards, root.edge.ice), (Some(4), true));
        assert_eq!(root.edge.public_ip.len(), 2);
        let list = env(&[("HEADWATER_EDGE__PUBLIC_IP", r#"["10.0.0.1"]"#)]);
        assert_eq!(load::<Root>(&list).expect("loads").edge.public_ip.len(), 1);
        for text in ["0,200", "0, 200", "[0, 200]"] {
            let root: Root = load(&env(&[("HEADWATER_EDGE__DELAY", text)])).expect(text);
            assert_eq!(root.edge.delay, Some([0, 200]));
        }
    }

    #[test]
    fn a_wrong_list_says_what_is_wrong_with_its_items() {
        for (variable, text, said) in [
            (
                "HEADWATER_EDGE__PUBLIC_IP",
                "10.0.0.1,here",
                "no IP address such as",
            ),
            ("HEADWATER_EDGE__PUBLIC_IP", "here", "no IP address such as"),
            ("HEADWATER_EDGE__DELAY", "0", "expected a list of length 2"),
            (
                "HEADWATER_EDGE__DELAY",
                "0,70000",
                "expected a whole number from 0 to 65535",
            ),
        ] {
            let told = error(&env(&[(variable, text)]));
            assert!(told.contains(said), "{told}");
        }
    }

    #[test]
    fn a_section_is_no_key() {
        let told = error(&env(&[("HEADWATER_RTMP", "on")]));
        assert_eq!(
            told,
            "HEADWATER_RTMP: this is a section; did you mean one of its keys, such as `HEADWATER_RTMP__CHUNK_BYTES`?"
        );
        let (_dir, layers) = file("rtmp = \"on\"\n");
        let told = error(&layers);
        assert!(told.contains("expected a section"), "{told}");
    }

    #[test]
    fn errors_are_in_words_of_operators() {
        for (variable, text, said) in [
            (
                "HEADWATER_RTMP__LISTEN",
                "localhost:1935",
                "no ADDRESS:PORT such as 0.0.0.0:8080; names aren't looked up",
            ),
            (
                "HEADWATER_RTMP__CHUNK_BYTES",
                "many",
                "expected a whole number from 0",
            ),
            (
                "HEADWATER_RTMP__CHUNK_BYTES",
                "-1",
                "expected a whole number from 0",
            ),
            ("HEADWATER_EDGE__ICE", "yes", "expected true or false"),
        ] {
            let told = error(&env(&[(variable, text)]));
            assert!(told.ends_with(said), "{told}");
        }
    }

    #[test]
    fn unknown_keys_name_their_place_and_the_likely_key() {
        let (_dir, layers) = file("id = 'a'\n\n[rtmp]\nlisten = '127.0.0.1:1'\nchunk_byte = 5\n");
        let text = error(&layers);
        assert!(
            text.contains(
                "h.toml:5:1: unknown key `rtmp.chunk_byte`; did you mean `rtmp.chunk_bytes`?"
            ),
            "{text}"
        );
        let (_dir, layers) = file("[rtpm]\nlisten = '127.0.0.1:1'\n");
        let text = error(&layers);
        assert!(
            text.contains("h.toml:1:2: unknown key `rtpm`; did you mean `rtmp`?"),
            "{text}"
        );
        let (_dir, layers) = file("[edge]\nlisten = '127.0.0.1:1'\n");
        assert!(error(&layers).contains("did you mean `rtmp.listen`?"));
        let text = error(&env(&[("HEADWATER_EDGE__SHARD", "4")]));
        assert_eq!(
            text,
            "HEADWATER_EDGE__SHARD: unknown key `edge.shard`; did you mean `HEADWATER_EDGE__SHARDS`?"
        );
        let text = error(&env(&[("HEADWATER_EDGE_SHARDS", "4")]));
        assert!(
            text.ends_with("did you mean `HEADWATER_EDGE__SHARDS`?"),
            "{text}"
        );
        let (_dir, layers) = file("ic = 1\n");
        assert!(error(&layers).contains("did you mean `id`?"));
        let (_dir, layers) = file("foo = 1\n");
        assert!(error(&layers).ends_with("unknown key `foo`"));
    }

    #[test]
    fn wrong_values_name_their_place() {
        let (_dir, layers) = file("[rtmp]\nchunk_bytes = 'many'\n");
        assert!(
            error(&layers).contains("h.toml:2:15: invalid type"),
            "{}",
            error(&layers)
        );
        let (_dir, layers) = file("[rtmp\n");
        assert!(error(&layers).contains("h.toml:1:"));
        let text = error(&env(&[("HEADWATER_RTMP__LISTEN", "nowhere")]));
        assert!(text.starts_with("HEADWATER_RTMP__LISTEN: "), "{text}");
        let missing = Layers {
            file: Some("/nonexistent/h.toml".into()),
            ..Layers::default()
        };
        assert!(error(&missing).starts_with("/nonexistent/h.toml: "));
    }

    #[test]
    fn variables_of_kubernetes_services_are_left_alone() {
        let layers = env(&[
            ("HEADWATER_EDGE_SERVICE_HOST", "10.0.0.1"),
            ("HEADWATER_EDGE_SERVICE_PORT_HTTP", "80"),
            ("HEADWATER_EDGE_PORT", "tcp://10.0.0.1:80"),
            ("HEADWATER_EDGE_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("HEADWATER_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("HEADWATER_CONFIG", "/etc/headwater.toml"),
        ]);
        assert_eq!(load::<Root>(&layers).expect("loads"), Root::default());
        assert!(load::<Root>(&env(&[("HEADWATER_PORTS", "1")])).is_err());
    }

    #[test]
    fn the_schema_lists_its_keys() {
        assert_eq!(
            keys::<Root>(),
            [
                "edge.delay",
                "edge.ice",
                "edge.public_ip",
                "edge.shards",
                "id",
                "rtmp.chunk_bytes",
                "rtmp.listen"
            ]
        );
    }

    #[test]
    fn edit_distance_is_levenshteins() {
        for (a, b, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("lisen", "listen", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
