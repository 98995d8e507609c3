//! Values that no error repeats, since errors end up in logs and on screens.

use super::value::{Node, Table, Value};

/// Where they are. A password is part of the URL; an API key is easily written where its hash belongs.
const SECRETS: [&[&str]; 5] = [
    &["redis", "url"],
    &["auth", "jwt", "secret"],
    &["auth", "api_keys", "hash"],
    &["admin", "key_hash"],
    &["tracing", "authorization"],
];

/// Forgets how they were written, and what stands in the place of the tables that hold them.
pub(super) fn hide(table: &mut Table) {
    for path in SECRETS {
        if let Some(node) = table.get_mut(path[0]) {
            hide_in(node, &path[1..]);
        }
    }
}

fn hide_in(node: &mut Node, path: &[&str]) {
    match (&mut node.value, path) {
        (Value::Table(table), [key, rest @ ..]) => {
            if let Some(node) = table.get_mut(*key) {
                hide_in(node, rest);
            }
        }
        (Value::List(nodes), _) => {
            nodes.iter_mut().for_each(|node| hide_in(node, path));
            node.text = None;
        }
        _ => node.text = None,
    }
}
