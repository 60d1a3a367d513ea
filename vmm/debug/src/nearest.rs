//! The names nearest to one that does not exist, for messages.

/// Least similarity of a name that is worth a mention.
const SIMILAR: f64 = 0.75;
/// How far behind the nearest a name may be and still be meant.
const BEHIND: f64 = 0.07;
/// Most names that are mentioned.
const MOST: usize = 3;

/// `; did you mean …?` with the names nearest to `name`, or nothing when none comes near.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = nearest(name, known);
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

/// The names nearest to `name`, nearest first.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let scored = known.into_iter().map(|known| (similarity(name, known), known));
    let mut near: Vec<_> = scored.filter(|(score, _)| *score >= SIMILAR).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let best = near.first().map_or(0.0, |(score, _)| *score);
    near.retain(|(score, _)| best - score < BEHIND);
    near.dedup_by_key(|(_, known)| *known);
    near.into_iter().take(MOST).map(|(_, known)| known).collect()
}

/// 1 for the same name, 0 for nothing in common. The last parts of paths count nearly as much as the whole.
fn similarity(name: &str, known: &str) -> f64 {
    let (name, known) = (name.to_lowercase(), known.to_lowercase());
    let last = |path: &str| path.rsplit("::").next().unwrap_or_default().to_owned();
    // In short names letters that have changed places weigh too much in the one measure; the other counts them as one mistake.
    let like = |name: &str, known: &str| {
        strsim::jaro_winkler(name, known).max(strsim::normalized_damerau_levenshtein(name, known) + 0.1)
    };
    like(&name, &known).max(like(&last(&name), &last(&known)) * 0.99)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn nearest_names_come_first_and_far_ones_never() {
        assert_eq!(nearest("wiats", ["waits", "bt", "vcpus", "watch", "write"]), ["waits"]);
        assert_eq!(nearest("hadnler", ["rt::interrupt::handler", "rt::apic::send"]), ["rt::interrupt::handler"]);
        assert_eq!(nearest("call::hadnler", ["handler", "apic::send"]), ["handler"]);
        assert_eq!(did_you_mean("xyzzy", ["waits"]), "");
        assert_eq!(did_you_mean("RIP", ["rip"]), "; did you mean rip?");
    }
}
