//! What docs/json.md says of the keys of machine-readable output, for the tests that read some.

use std::fs;

use serde_json::Value;

/// Keys that docs/json.md promises for each line of `kind`.
pub(crate) fn documented_keys(kind: &str) -> Vec<String> {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md")).unwrap();
    let section = document.split("\n## ").find(|section| section.starts_with(&format!("`{kind}`"))).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(key, _)| key.to_owned()).collect()
}

/// `a.b[].c` in a value; an absent optional key is no error, a key that is not documented is.
pub(crate) fn undocumented(value: &Value, prefix: &str, documented: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Value::Object(map) if !documented.iter().any(|key| *key == format!("{prefix}.*")) => {
            for (key, value) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                if !documented.contains(&path) {
                    found.push(path.clone());
                }
                found.extend(undocumented(value, &path, documented));
            }
        }
        Value::Array(list) => {
            for value in list {
                found.extend(undocumented(value, &format!("{prefix}[]"), documented));
            }
        }
        _ => {}
    }
    found
}
