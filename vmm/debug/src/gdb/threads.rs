//! What gdb's `info threads` tells of each vCPU: its name, its state and what it does, as the command `vcpus` has it.

use std::fmt::Write;

use serde_json::Value;

use super::machine::Machine;

impl Machine<'_> {
    /// The list of threads (gdb manual, G.4 Thread List Format).
    pub(super) fn thread_list(&mut self) -> &str {
        if self.threads.is_none() {
            let vcpus = self.session.run(&["vcpus".to_owned()]).map_or(Value::Null, |answer| answer.data);
            self.threads = Some(list(self.session.vcpus().len(), &vcpus));
        }
        self.threads.as_deref().unwrap_or_default()
    }
}

fn list(count: usize, vcpus: &Value) -> String {
    let mut xml = "<?xml version=\"1.0\"?>\n<threads>\n".to_owned();
    for index in 0..count {
        let of = |key: &str| vcpus[index][key].as_str().unwrap_or_default();
        let (state, doing) = (of("state"), of("doing"));
        // What it does may say its state.
        let state = if doing.to_lowercase().contains(&state.replace('-', " ")) { "" } else { state };
        let told = [state, doing].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
        let id = index + 1;
        let _ =
            writeln!(xml, "<thread id=\"p1.{id:x}\" core=\"{index}\" name=\"vcpu{index}\">{}</thread>", text(&told));
    }
    xml + "</threads>\n"
}

/// Text as XML has it; names may come from guests.
fn text(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '>' => escaped.push_str("&gt;"),
            other if other.is_control() => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use super::*;

    #[test]
    fn threads_are_named_and_told_of() {
        let vcpus = json!([{"state": "halted", "doing": "waits in <T as A>::f\u{1b}"},
            {"state": "halted", "doing": "halted with interrupts on"},
            {"state": "waits-for-sipi", "doing": "not started (waits for SIPI)"}]);
        let xml = list(17, &vcpus);
        let first = "<thread id=\"p1.1\" core=\"0\" name=\"vcpu0\">halted, waits in &lt;T as A&gt;::f?</thread>";
        assert!(xml.contains(first), "{xml}");
        assert!(xml.contains("name=\"vcpu1\">halted with interrupts on</thread>"), "{xml}");
        assert!(xml.contains("name=\"vcpu2\">not started (waits for SIPI)</thread>"), "{xml}");
        assert!(xml.contains("<thread id=\"p1.11\" core=\"16\" name=\"vcpu16\"></thread>"), "{xml}");
    }
}
