//! The names nearest to one that does not exist, for messages.

/// Least similarity of a name that is worth a mention.
const SIMILAR: f64 = 0.75;
/// Most names that are mentioned.
const MOST: usize = 3;

/// `; did you mean …?` with the names nearest to `name`, or nothing when none comes near.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    did_you_mean_these(&nearest(name, known))
}

/// The same with names that are known to be the nearest.
pub fn did_you_mean_these(near: &[&str]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

/// The same, or what `otherwise` says where no name comes near.
pub fn did_you_mean_or<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    otherwise: impl FnOnce() -> String,
) -> String {
    let near = did_you_mean(name, known);
    if near.is_empty() { otherwise() } else { near }
}

/// The names nearest to `name`, nearest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(f64, &str)> =
        known.into_iter().map(|k| (similarity(name, k), k)).filter(|(score, _)| *score >= SIMILAR).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup_by_key(|(_, k)| *k);
    near.into_iter().take(MOST).map(|(_, k)| k).collect()
}

/// 1 for the same name, 0 for nothing in common. A name that is the last part of a path counts as near.
fn similarity(name: &str, known: &str) -> f64 {
    // All that exist are in lower case, and nothing is farther off for being shouted.
    let name = &*name.to_lowercase();
    let tail = known.rsplit('/').next().unwrap_or(known);
    strsim::jaro_winkler(name, known).max(strsim::jaro_winkler(name, tail) * 0.99)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn misspelt_name_brings_the_name_that_was_meant() {
        assert_eq!(nearest("aloc", ["alloc", "call", "vcpus"])[0], "alloc");
        assert_eq!(nearest("stack-brodcast", ["mtrr/stack-broadcast", "nmi/watchdog"]), ["mtrr/stack-broadcast"]);
    }

    #[test]
    fn name_in_capitals_brings_the_name_that_was_meant() {
        assert_eq!(nearest("ALLOC", ["alloc", "call"])[0], "alloc");
        assert_eq!(nearest("Stack-Broadcast", ["mtrr/stack-broadcast"]), ["mtrr/stack-broadcast"]);
    }

    #[test]
    fn strange_name_brings_nothing() {
        assert_eq!(did_you_mean("xyzzy", ["alloc", "call"]), "");
    }
}
